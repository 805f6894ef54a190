"""Kinds of data that recipes train on, one file each; :mod:`.base` says how to add one."""
