// SPDX-License-Identifier: GPL-2.0
/*
 * exec - merge programs and libraries that run
 *
 * Looks only into files that some process has mapped executable, and merges
 * all of their pages that equal others of such files: text, read-only data,
 * what initialised data is copied from.
 *
 * For: machines that run the same programs out of many containers, chroots or
 * virtual environments.  Text is hardly ever written, so merges last; it is
 * read all the time, so one copy in the processor's caches serves all; and
 * there is little of it, so finding out costs little.
 *
 * Bad: where the memory is in data: it leaves everything alone that nobody
 * runs, also the pages of programs that ended before it came by.  What is
 * interpreted (Python, Java, JavaScript) is data, as are programs that are run
 * by a loader which reads them into memory of its own.
 */
#include "vmlinux.h"

#define HAVE_WANTED

#include "ksm_ext_match.bpf.h"

char _license[] SEC("license") = "GPL";
const char about[] = "merge programs and libraries that run";

static __always_inline bool wanted(const struct ksm_ext_file_stat *st)
{
	return st->flags & KSM_EXT_FILE_EXEC;
}

SEC(".struct_ops.link")
struct ksm_ext_ops exec_ops = {
	.init = (void *)walk_init,
	.scan = (void *)walk_scan,
	.domain = (void *)walk_domain,
	.broken = (void *)walk_broken,
	.flags = KSM_EXT_EVENTS,
	.name = "exec",
};
