// SPDX-License-Identifier: GPL-2.0
/* Hands on what the tracepoints of ksm_ext tell. */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "trace.h"

char _license[] SEC("license") = "GPL";

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} events SEC(".maps");

__u64 lost;			/* events that there was no room for */

static __always_inline void hand_on(u32 kind, u64 file, u64 index, u32 nr,
				    const char *text)
{
	struct traced *event;

	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		__sync_fetch_and_add(&lost, 1);
		return;
	}
	event->time_ns = bpf_ktime_get_ns();
	event->file = file;
	event->index = index;
	event->kind = kind;
	event->nr = nr;
	event->text[0] = 0;
	if (text)
		bpf_probe_read_kernel_str(event->text, sizeof(event->text),
					  text);
	bpf_ringbuf_submit(event, 0);
}

SEC("tp_btf/ksm_ext_merge")
int BPF_PROG(on_merge, u64 dst, u64 dst_index, u64 src, u64 src_index, u32 nr)
{
	hand_on(TRACE_MERGE, src, src_index, nr, NULL);
	return 0;
}

SEC("tp_btf/ksm_ext_refuse")
int BPF_PROG(on_refuse, u64 dst, u64 dst_index, u64 src, u64 src_index,
	     const char *why)
{
	hand_on(TRACE_REFUSE, src, src_index, 1, why);
	return 0;
}

SEC("tp_btf/ksm_ext_break")
int BPF_PROG(on_break, dev_t dev, unsigned long ino, unsigned long index,
	     unsigned long nr, const char *why)
{
	hand_on(TRACE_BREAK, ino, index, nr, why);
	return 0;
}

SEC("tp_btf/ksm_ext_eject")
int BPF_PROG(on_eject, const char *name, int code, const char *reason)
{
	hand_on(TRACE_EJECT, 0, 0, 0, name);
	return 0;
}
