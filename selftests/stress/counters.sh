# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# For scripts in the guest that run others' programs while a policy merges: what
# ksm_ext has counted.  To be sourced.

sysfs=/sys/kernel/mm/ksm_ext

# merged: pairs of pages that share one since, or did before
merged()
{
	cat $sysfs/merge/applied
}

broken()
{
	cat $sysfs/break/* | awk '{ n += $1 } END { print n }'
}

# rules POLICY: is it in charge, neither ejected nor switched off?
rules()
{
	[ "$(<$sysfs/policy) $(<$sysfs/state)" = "$1 active" ]
}
