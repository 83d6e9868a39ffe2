/* SPDX-License-Identifier: GPL-2.0 */
/*
 * For policies built for a kernel whose struct ksm_ext_ops is another one than
 * that of the kernel they are loaded on.
 */
#ifndef KSMX_LAYOUT_H
#define KSMX_LAYOUT_H

#define ksm_ext_ops ksm_ext_ops_of_this_kernel
#include "vmlinux.h"
#undef ksm_ext_ops
#include "ksm_ext.bpf.h"

char _license[] SEC("license") = "GPL";

SEC("struct_ops.s/scan")
s32 BPF_PROG(layout_scan, const struct ksm_ext_scan_ctx *slice)
{
	return 1;
}

#endif /* KSMX_LAYOUT_H */
