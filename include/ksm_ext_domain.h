/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Who may share with whom: the rule of the policies included, for them and for
 * those who foretell what they will do.
 */
#ifndef __KSM_EXT_DOMAIN_H
#define __KSM_EXT_DOMAIN_H

#ifndef __VMLINUX_H__
#include <linux/types.h>
#endif

/**
 * ksm_ext_domain_of() - the trust domain of a file
 * @mode:	its permission bits
 * @uid:	its owner
 * @gid:	its group
 *
 * Files share pages only with files of the same owner that the same others may
 * read, and only when nobody but the owner may write them.  Whoever can write
 * one of the files and time the write could otherwise learn what a file holds
 * that is not theirs; whoever can map one can tell by the time that a read takes
 * whether somebody else uses the same bytes.
 *
 * Return: the domain, 0 (never merge) for files that others may write, and those
 * of nobody (an id of -1).
 */
static inline __attribute__((always_inline)) __u64
ksm_ext_domain_of(__u32 mode, __u32 uid, __u32 gid)
{
	const __u32 nobody = -1;	/* neither a uid nor a gid */

	if ((mode & 0022) || uid == nobody || gid == nobody)
		return 0;
	/* Inverted, so that none of them is 0 */
	if (mode & 0004)
		return ~((__u64)uid << 32 | nobody);
	if (mode & 0040)
		return ~((__u64)uid << 32 | gid);
	return ~((__u64)nobody << 32 | uid);
}

#endif /* __KSM_EXT_DOMAIN_H */
