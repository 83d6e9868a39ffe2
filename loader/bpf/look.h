/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What look.bpf.c finds out for ksmx.
 */
#ifndef KSMX_LOOK_H
#define KSMX_LOOK_H

#ifndef __VMLINUX_H__
#include <linux/types.h>
#endif

/* Pages that one call looks at */
#define LOOK_PAGES	256
#define LOOK_PATH	4096

/**
 * struct look_args - what the programs are asked, and what they answer
 * @id:		a file; look_file fills it in
 * @index:	first page to look at
 * @fd:		for look_file: the file, open
 * @nr:		how many pages, LOOK_PAGES at most
 * @domain:	trust domain of the file, from look_domain
 * @dev:	device of the file, from look_path
 * @err:	0 or a negative errno
 */
struct look_args {
	__u64 id;
	__u64 index;
	__u64 domain;
	__s32 fd;
	__u32 nr;
	__u32 dev;
	__s32 err;
};

/* Of struct ksm_ext_page_info, what user space wants to know */
struct look_page {
	__u64 root;
	__u32 state;
	__u32 refusal;
	__u32 nr_sharing;
};

/* The same of struct ksm_ext_alias_info */
struct look_alias {
	__u64 root;
	__u64 file;
	__u64 index;
	__u64 domain;
	__u32 nr;
	__u32 nr_sharing;
};

#endif /* KSMX_LOOK_H */
