// SPDX-License-Identifier: GPL-2.0
/*
 * A policy to try ksmx with: it merges nothing, and fails when it is told to,
 * with as long a record as there can be.
 */
#include "vmlinux.h"
#include "ksm_ext.bpf.h"

char _license[] SEC("license") = "GPL";
const char about[] = "fails when told to";

const volatile unsigned int fixed = 7;
const volatile unsigned char small = 1;
const volatile bool refuse;	/* to start */

struct tunables {
	__s32 fail;		/* what scan returns, if less than 0 */
	__s32 exit;		/* what it exits with, if not 0 */
	__u8 tiny;
	bool yes;
	__u64 large;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tunables);
} tunables SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 10);
	__type(key, __u32);
	__type(value, __u32);
} table SEC(".maps");

/* A message as long as can be, 255 letters, the last of them x */
#define FIFTY "012345678 012345678 012345678 012345678 012345678 "

SEC("struct_ops.s/init")
s32 BPF_PROG(ksmx_init)
{
	return refuse ? -EINVAL : 0;
}

SEC("struct_ops.s/dump")
void BPF_PROG(ksmx_dump)
{
	ksm_ext_dump("first line\n");
	ksm_ext_dump("last line\n");
}

SEC("struct_ops.s/scan")
s32 BPF_PROG(ksmx_scan, const struct ksm_ext_scan_ctx *slice)
{
	__u32 zero = 0;
	struct tunables *t = bpf_map_lookup_elem(&tunables, &zero);

	if (t && t->exit)
		ksm_ext_exit(t->exit, FIFTY FIFTY FIFTY FIFTY FIFTY "wxyzx");
	if (t && t->fail < 0)
		return t->fail;
	return 1 + fixed - fixed + small - small;
}

SEC(".struct_ops.link")
struct ksm_ext_ops ksmx_policy = {
	.init = (void *)ksmx_init,
	.scan = (void *)ksmx_scan,
	.dump = (void *)ksmx_dump,
	.name = "ksmx_policy",
};
