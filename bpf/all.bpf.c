// SPDX-License-Identifier: GPL-2.0
/*
 * all - merge whatever is identical
 *
 * Hashes every clean cached page of every known file once, and merges it with
 * the last page seen that had the same hash: in another file or in the same
 * one, at any offset, zero pages included.  Pages that come in a row are merged
 * in one go where the pages they equal come in a row, too.
 *
 * For: machines short of memory with much of the same in many files, when it is
 * not known where (containers and chroots of different origin, build trees,
 * unpacked archives, backups).
 *
 * Files are looked at as soon as they were read.
 *
 * Bad: where little is equal, since each page is read and hashed to find that
 * out (a file is hashed again when its size, its mtime or its number of cached
 * pages changes); for files written all the time; where the distinct pages
 * in memory outnumber the entries of the map "candidates", since the pages that
 * drop out of it find no partner any more.  An entry takes about 80 bytes
 * whether used or not: give it about one for each page of page cache with
 * --set candidates.max_entries=N.
 */
#include "vmlinux.h"
#include "ksm_ext_match.bpf.h"

char _license[] SEC("license") = "GPL";
const char about[] = "merge whatever is identical";

SEC(".struct_ops.link")
struct ksm_ext_ops all_ops = {
	.init = (void *)walk_init,
	.scan = (void *)walk_scan,
	.domain = (void *)walk_domain,
	.broken = (void *)walk_broken,
	.flags = KSM_EXT_EVENTS,
	.name = "all",
};
