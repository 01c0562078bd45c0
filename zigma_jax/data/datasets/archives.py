"""Pictures in an archive as its authors give it out, or unpacked beside it."""

import contextlib
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from zigma_jax.errors import DataError, MissingPackageError

Read = Callable[[str], bytes]
"""The content of a member by its name."""


def find_members(
    root: Path, name: str, kind: str, where_from: str
) -> tuple[dict[str, int], Callable[[], AbstractContextManager[Read]]]:
    """The files of root/NAME.zip or root/NAME.rar, or of the directory root/NAME, that end in `kind`.

    Args:
        root: the directory.
        name: of the archive, without its ending.
        kind: the ending of the files to find: ".jpg".
        where_from: where the archive can be had, for errors.

    Returns:
        The files' sizes in bytes by their names without folders, and what opens a function that reads one.

    Raises:
        DataError: none of them is there, or the archive is damaged; the function that reads raises it, too.
        MissingPackageError: a .rar, and what reads it is not installed.
    """
    archive, folder = root / f"{name}.zip", root / name
    if archive.is_file():
        try:
            with zipfile.ZipFile(archive) as file:
                members = {Path(one.filename).name: one for one in file.infolist() if one.filename.endswith(kind)}
        except zipfile.BadZipFile as error:
            with open(archive, "rb") as file:
                page = file.read(256).lstrip().startswith(b"<")
            what = "a web page (the drive's notice of its quota?)" if page else f"no whole zip ({error})"
            raise DataError(f"{archive}: is {what}; download it again. {where_from}") from None

        @contextlib.contextmanager
        def opened() -> Iterator[Read]:
            with zipfile.ZipFile(archive) as file:
                yield lambda name: _read_member(file, archive, members[name])

        return {name: one.file_size for name, one in members.items()}, opened
    if (packed := root / f"{name}.rar").is_file():
        return _find_in_rar(packed, kind, where_from)
    if folder.is_dir():
        paths = {path.name: path for path in folder.rglob(f"*{kind}") if not path.name.startswith(".")}
        return {name: path.stat().st_size for name, path in paths.items()}, lambda: contextlib.nullcontext(
            lambda name: paths[name].read_bytes()
        )
    raise DataError(
        f"data.folder={str(root)!r}: there is neither {name}.zip nor {name}.rar nor {name}/ in it. {where_from}"
    )


def _find_in_rar(
    archive: Path, kind: str, where_from: str
) -> tuple[dict[str, int], Callable[[], AbstractContextManager[Read]]]:
    """`find_members` of a .rar. What is compressed in it takes a program: unrar, unar, 7z or bsdtar."""
    try:
        import rarfile
    except ImportError as error:
        raise MissingPackageError(
            f"{archive}: takes rarfile, which zigma_jax[video] brings, or unpack it beside itself ({error})"
        ) from None
    try:
        with rarfile.RarFile(archive) as file:
            solid = file.is_solid()
            members = {Path(one.filename).name: one for one in file.infolist() if one.filename.endswith(kind)}
    except rarfile.Error as error:
        raise DataError(f"{archive}: is no whole rar ({error}); download it again. {where_from}") from None
    if solid:
        raise DataError(
            f"{archive}: is solid, so that reading its files one by one takes days; unpack it beside itself"
        )

    @contextlib.contextmanager
    def opened() -> Iterator[Read]:
        with rarfile.RarFile(archive) as file:

            def read(name: str) -> bytes:
                try:
                    return file.read(members[name])
                except rarfile.RarCannotExec:
                    raise DataError(
                        f"{archive}: no program is there that unpacks it; install unrar, unar, 7z or bsdtar, or unpack "
                        "it beside itself"
                    ) from None
                except rarfile.Error as error:
                    raise DataError(f"{archive}: {name} is damaged ({error}); download the archive again") from None

            yield read

    return {name: one.file_size for name, one in members.items()}, opened


def _read_member(file: zipfile.ZipFile, archive: Path, member: zipfile.ZipInfo) -> bytes:
    try:
        return file.read(member)
    except (zipfile.BadZipFile, zipfile.zlib.error) as error:  # pyright: ignore[reportAttributeAccessIssue]
        raise DataError(f"{archive}: {member.filename} is damaged ({error}); download the archive again") from None
