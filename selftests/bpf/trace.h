/* SPDX-License-Identifier: GPL-2.0 */
/* What trace.bpf.c tells of tracepoints, for both sides. */
#ifndef TRACE_H
#define TRACE_H

#ifndef __VMLINUX_H__
#include <linux/types.h>
#endif

enum trace_kind { TRACE_MERGE, TRACE_REFUSE, TRACE_BREAK, TRACE_EJECT };

struct traced {
	__u64 time_ns;		/* CLOCK_MONOTONIC */
	__u64 file;		/* id of src; an inode number for TRACE_BREAK */
	__u64 index;		/* page of it */
	__u32 kind;		/* enum trace_kind */
	__u32 nr;		/* pages */
	char text[64];		/* why; for TRACE_EJECT the policy */
};

#endif /* TRACE_H */
