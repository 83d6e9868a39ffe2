// SPDX-License-Identifier: GPL-2.0
/* A BPF object that is no policy. */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "GPL";

SEC("syscall")
int nothing(void *ctx)
{
	return 0;
}
