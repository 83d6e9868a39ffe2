/* SPDX-License-Identifier: GPL-2.0 */
/* Arguments of the programs in manual.bpf.c, for both sides. */
#ifndef MANUAL_H
#define MANUAL_H

#define MANUAL_MAX_RUN 256

struct manual_args {
	__u64 dst;		/* file ids and page indexes */
	__u64 dst_index;
	__u64 src;
	__u64 src_index;
	__u64 ino;		/* what manual_find looks for ... */
	__u32 dev;
	__u32 nr;		/* pages, at most MANUAL_MAX_RUN */
	__u64 id;		/* ... and what it found */
	__u64 nr_cached;
};

#endif /* MANUAL_H */
