# SPDX-License-Identifier: GPL-2.0
#
# For programs that judge the kernel's reports: does a line of a stack trace name
# a function of ksm_ext?  SYMBOLS is the file that build.sh makes of those in
# mm/ksm_ext; without it, only names that say so are known.

BEGIN {
	while (SYMBOLS != "" && (getline name <SYMBOLS) > 0)
		symbols[name] = 1
}

# Compilers append to names: .isra.0, .part.0, .constprop.0, .cold
function ours(line,	name)
{
	if (!match(line, /[A-Za-z_][A-Za-z0-9_.]*\+0x/))
		return 0
	name = substr(line, RSTART, RLENGTH - 3)
	sub(/\..*/, "", name)
	return name ~ /ksm_ext/ || name in symbols
}
