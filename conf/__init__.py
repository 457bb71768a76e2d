"""The configs of esvit_pl: one primary config for each command, one folder for each group of options."""
