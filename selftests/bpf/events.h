/* SPDX-License-Identifier: GPL-2.0 */
/* Arguments of the program ask in events.bpf.c, for both sides. */
#ifndef EVENTS_H
#define EVENTS_H

#ifndef __VMLINUX_H__
/* The kernel's, as include/linux/ksm_ext_ops.h has them */
#define KSM_EXT_FILE_EXEC	(1 << 3)
#define KSM_EXT_PAGE_MAPPED	(1 << 1)

struct ksm_ext_file_stat {
	__u64 id;
	__u64 ino;
	__u64 size;
	__u64 nr_cached;
	__u64 mtime_ns;
	__u64 cgroup;
	__u32 dev;
	__u32 generation;
	__u32 fs_magic;
	__u32 uid;
	__u32 gid;
	__u32 mode;
	__u32 flags;
	__u32 active;
};

struct ksm_ext_page_info {
	__u64 root;
	__u64 domain;
	__u32 state;
	__u32 refusal;
	__u32 nr_sharing;
	__u32 flags;
};

struct ksm_ext_event {
	__u64 file;
	__u64 index;
	__u64 time_ns;
	__u32 nr;
	__u32 reason;
};
#endif

struct ask_args {
	int fd;			/* of a file */
	__u32 dev;		/* or these, if fd is -1 */
	__u64 ino;
	__u64 index;		/* a page of it */
};

#endif /* EVENTS_H */
