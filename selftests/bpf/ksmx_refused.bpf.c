// SPDX-License-Identifier: GPL-2.0
/* A policy that the verifier refuses: it reads what may be NULL. */
#include "vmlinux.h"
#include "ksm_ext.bpf.h"

char _license[] SEC("license") = "GPL";

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __s32);
} table SEC(".maps");

SEC("struct_ops.s/scan")
s32 BPF_PROG(refused_scan, const struct ksm_ext_scan_ctx *slice)
{
	__u32 zero = 0;

	return *(volatile __s32 *)bpf_map_lookup_elem(&table, &zero);
}

SEC(".struct_ops.link")
struct ksm_ext_ops ksmx_refused = {
	.scan = (void *)refused_scan,
	.name = "ksmx_refused",
};
