// SPDX-License-Identifier: GPL-2.0
/*
 * A policy to try ksmx with: it merges nothing, and fails when it is told to.
 */
#include "vmlinux.h"
#include "ksm_ext.bpf.h"

char _license[] SEC("license") = "GPL";
const char about[] = "fails when told to";

const volatile unsigned int fixed = 7;
const volatile unsigned char small = 1;

struct tunables {
	__s32 fail;		/* what scan returns, if less than 0 */
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

SEC("struct_ops.s/scan")
s32 BPF_PROG(ksmx_scan, const struct ksm_ext_scan_ctx *slice)
{
	__u32 zero = 0;
	struct tunables *t = bpf_map_lookup_elem(&tunables, &zero);

	if (t && t->fail < 0)
		return t->fail;
	return 1 + fixed - fixed + small - small;
}

SEC(".struct_ops.link")
struct ksm_ext_ops ksmx_policy = {
	.scan = (void *)ksmx_scan,
	.name = "ksmx_policy",
};
