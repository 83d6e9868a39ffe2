/* SPDX-License-Identifier: GPL-2.0 */
/*
 * How far a policy has come: the only entry of its map "progress", written by
 * the policies in bpf/ and read by ksmx.  A policy may do without it.
 */
#ifndef __KSM_EXT_PROGRESS_H
#define __KSM_EXT_PROGRESS_H

#ifndef __VMLINUX_H__
#include <linux/types.h>
#endif

/**
 * struct ksm_ext_progress - progress of a policy that walks files in rounds
 * @rounds:	complete rounds over all known files
 * @quiet:	how many of the latest rounds, in a row, merged nothing new; at
 *		1 or more the policy has settled
 * @files:	files in the latest complete round
 * @pending:	those of them with pages that were busy: they are looked into
 *		again in a later round
 * @merged:	pages newly merged in the latest complete round
 * @total_looks: files looked into, since the policy was loaded
 * @total_hashed: pages hashed, since the policy was loaded
 * @total_merged: pages newly merged, since the policy was loaded
 */
struct ksm_ext_progress {
	__u64 rounds;
	__u64 quiet;
	__u64 files;
	__u64 pending;
	__u64 merged;
	__u64 total_looks;
	__u64 total_hashed;
	__u64 total_merged;
};

#endif /* __KSM_EXT_PROGRESS_H */
