"""Clips on their way from files to arrays, one subject a module.

window     which frames of a clip are taken
decode     from a file, its bytes or a directory of frames to these frames, cropped
files      which files and directories of a folder are clips
folder     such a folder as a data set
write      videos as .mp4 or animated .webp
sets       sets of clips for metrics
"""
