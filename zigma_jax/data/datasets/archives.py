"""Pictures in an archive as its authors give it out, or unpacked beside it."""

import contextlib
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from zigma_jax.errors import DataError

Read = Callable[[str], bytes]
"""The content of a member by its name."""


def find_members(
    root: Path, name: str, kind: str, where_from: str
) -> tuple[dict[str, int], Callable[[], AbstractContextManager[Read]]]:
    """The files of root/NAME.zip, or of the directory root/NAME, that end in `kind`.

    Args:
        root: the directory.
        name: of the archive, without its ending.
        kind: the ending of the files to find: ".jpg".
        where_from: where the archive can be had, for errors.

    Returns:
        The files' sizes in bytes by their names without folders, and what opens a function that reads one.

    Raises:
        DataError: neither is there, or the archive is damaged; the function that reads raises it, too.
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
    if folder.is_dir():
        paths = {path.name: path for path in folder.rglob(f"*{kind}") if not path.name.startswith(".")}
        return {name: path.stat().st_size for name, path in paths.items()}, lambda: contextlib.nullcontext(
            lambda name: paths[name].read_bytes()
        )
    raise DataError(f"data.folder={str(root)!r}: there is neither {name}.zip nor {name}/ in it. {where_from}")


def _read_member(file: zipfile.ZipFile, archive: Path, member: zipfile.ZipInfo) -> bytes:
    try:
        return file.read(member)
    except (zipfile.BadZipFile, zipfile.zlib.error) as error:  # pyright: ignore[reportAttributeAccessIssue]
        raise DataError(f"{archive}: {member.filename} is damaged ({error}); download the archive again") from None
