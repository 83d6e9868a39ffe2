/* SPDX-License-Identifier: GPL-2.0 */
/*
 * ksmx: loads, swaps, unloads and shows ksm_ext policies.
 */
#ifndef __KSMX_H
#define __KSMX_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>

#include <bpf/libbpf.h>
#include <cjson/cJSON.h>

#define KSMX_VERSION	"0.1"

#define BPFFS		"/sys/fs/bpf"
#define PIN_DIR		BPFFS "/ksm_ext"
#define PIN_LINK	PIN_DIR "/link"
#define PIN_MAPS	PIN_DIR "/maps"
#define PIN_MAPS_NEW	PIN_DIR "/maps_new"
#define SYSFS		"/sys/kernel/mm/ksm_ext"

#define NR_POLICY_DIRS	3

/* Exit statuses; --help says what they mean. */
enum {
	KSMX_OK,
	KSMX_FAILED,
	KSMX_USAGE,
	KSMX_NO_SUPPORT,
	KSMX_NO_PRIVILEGE,
	KSMX_BAD_OBJECT,
	KSMX_WRONG_STATE,
	KSMX_EJECTED,
};

struct options {
	bool json;
	bool verbose;
	const char **sets;	/* NAME=NUMBER */
	size_t nr_sets;
};

extern struct options options;

/* A policy on its way into the kernel. */
struct policy {
	char path[PATH_MAX];
	struct bpf_object *obj;
	struct bpf_map *ops;
};

/* report.c: what people and programs get to read */
void report_init(void);
int fail(int status, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
const char *libbpf_said(void);
const char *verifier_said(void);
int print_json(cJSON *object);

/* system.c: what the running kernel offers */
int check_support(void);
int check_loadable(void);
bool sysfs_read(const char *name, char *buf, size_t size);

/* object.c: policies as files */
void policy_dirs(char dirs[NR_POLICY_DIRS][PATH_MAX]);
int policy_open_path(struct policy *policy);
int policy_open(const char *name, struct policy *policy);
int policy_set(const struct policy *policy, const char *setting);
const char *policy_about(const struct policy *policy);
const char *policy_name(const struct policy *policy);

/* The commands; each returns an exit status. */
int cmd_load(const char *name);		/* load.c */
int cmd_swap(const char *name);
int cmd_unload(const char *unused);
int cmd_status(const char *unused);	/* status.c */
int cmd_list(const char *unused);

#endif /* __KSMX_H */
