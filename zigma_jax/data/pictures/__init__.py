"""Pictures on their way from files to arrays, one subject a module.

files      which files of a directory are pictures, and one of them as pixels, or an error that names it
decode     from a picture's bytes to RGB
exif       which way up a photograph is
pixels     crop and resize as ADM does; bytes and floats in [-1, 1]
arrays     pictures and labels in an .npz
sets       sets of pictures for metrics and for `sample --encode`
"""
