/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Asking the kernel which pages share, and with whom.
 */
#ifndef __KSMX_LOOK_USER_H
#define __KSMX_LOOK_USER_H

#include "ksmx.h"
#include "bpf/look.h"

/* How many pages of a file are shared. */
struct look_count {
	__u64 id;
	__u64 pages;
};

int look_load(void);
int look_open(void);
int look_up(int fd, __u64 *id);
int look_at(__u64 id, __u64 index, unsigned int nr, struct look_page *pages);
int look_domain(__u64 id, __u64 *domain);
const char *look_path(__u64 id);
int look_for_aliases(const __u64 *roots, size_t nr,
		     int (*tell)(const struct look_alias *alias, void *arg),
		     void *arg);
int look_for_files(struct look_count *top, size_t max);

#endif /* __KSMX_LOOK_USER_H */
