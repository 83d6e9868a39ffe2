/* SPDX-License-Identifier: GPL-2.0 */
/*
 * ksmx: loads, swaps, unloads, explains and watches ksm_ext policies.
 */
#ifndef __KSMX_H
#define __KSMX_H

#include <argp.h>
#include <limits.h>
#include <stdbool.h>
#include <stddef.h>

#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <cjson/cJSON.h>

#define KSMX_VERSION	"0.2"

#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))
#define MIB		(1024.0 * 1024.0)

#define BPFFS		"/sys/fs/bpf"
#define PIN_DIR		BPFFS "/ksm_ext"
#define PIN_LINK	PIN_DIR "/link"
#define PIN_MAPS	PIN_DIR "/maps"
#define SYSFS		"/sys/kernel/mm/ksm_ext"

#define NR_POLICY_DIRS	3

/* Room for the record of how a policy ended, and for its own dump */
#define RECORD_LEN	512
#define DUMP_LEN	4096

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
	NR_KSMX_STATUSES,
};

/* What options say; which command takes which is in the command table. */
struct options {
	bool json;
	bool verbose;
	const char **sets;	/* NAME=NUMBER */
	size_t nr_sets;
	bool unmerge;
	const char *output;
	bool every_page;
	bool any_fs;
	bool one_fs;
	size_t memory;		/* bytes */
	size_t nr_files;
};

extern struct options options;

/* What an argument of a command names, for completion. */
enum words {
	WORDS_NONE,
	WORDS_POLICY,
	WORDS_TUNABLE,
	WORDS_COMMAND,
	WORDS_PATH,
};

#define ANY_NUMBER	INT_MAX

/*
 * All that there is to say about a command.  Parser, help, manual page and
 * completion are made from this.
 */
struct command {
	const char *name;
	const char *args;	/* as in a synopsis */
	const char *brief;	/* half a line */
	const char *doc;	/* paragraphs */
	const char *examples;	/* one a line */
	int min_args, max_args;
	enum words words;
	const struct argp_option *options;	/* besides the common ones */
	int (*run)(int argc, char **argv);	/* returns an exit status */
};

/* commands.c */
extern const struct command commands[];
extern const size_t nr_commands;
extern const struct argp_option common_options[];
extern const char * const statuses[NR_KSMX_STATUSES];
extern const char summary[];
const struct command *find_command(const char *name);

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
const char *printable(const char *path);
const char *libbpf_said(void);
const char *verifier_said(void);
int print_json(cJSON *object);
int print_json_line(cJSON *object);
void print_wrapped(int column, int indent, const char *text);

/* system.c: what the running kernel offers */
int check_support(void);
const struct btf *kernel_btf(void);
int check_pins(void);
int check_loadable(void);
bool capable(int cap);
bool sysfs_read(const char *name, char *buf, size_t size);
int sysfs_write(const char *name, const char *value);

/* counters.c: what the kernel counts */
cJSON *read_status(void);
double get_number(const cJSON *object, const char *name);
const char *get_string(const cJSON *object, const char *name);
bool ksm_extd_cpu_seconds(double *seconds);

/* object.c: policies as files */
void policy_dirs(char dirs[NR_POLICY_DIRS][PATH_MAX]);
int policy_open_path(struct policy *policy);
int policy_open(const char *name, struct policy *policy);
int policy_set(const struct policy *policy, const char *setting);
int policy_map(const struct policy *policy, const char *name);
cJSON *policy_tunables(const struct policy *policy);
const char *policy_about(const struct policy *policy);
const char *policy_name(const struct policy *policy);
char *policy_misfit(const struct policy *policy, const struct btf *kernel);
cJSON *list_policies(void);

/* numbers.c: numbers by their names in BTF */
const struct btf_type *resolve(const struct btf *btf, __u32 id);
__u32 find_member(const struct btf *btf, const struct btf_type *type,
		  const char *name, size_t *offset);
__u32 enum_value(const char *of, const char *name);
int parse_setting(const char *setting, char *name, size_t size,
		  const char **value);
int set_number(const struct btf_type *type, void *data, const char *name,
	       const char *text);
double get_value(const struct btf_type *type, const void *data);

/* knobs.c: what can be set in the kernel */
void add_knobs(cJSON *object);
bool is_knob(const char *setting);
int knob_set(const char *setting);
int knobs_write(void);
void knobs_restore(void);

/* An entry of a map of a policy. */
struct entry {
	char *name;		/* of the map */
	int map;
	__u64 key;
	struct btf *btf;
	const struct btf_type *type;	/* a struct */
	char *data;
	char *before;		/* what it was when it was opened */
	bool exists;
};

/* entries.c: what is in such maps */
int map_value_type(int map, struct bpf_map_info *info, struct btf **btf,
		   const struct btf_type **type);
int entry_open(struct entry *e, const struct policy *policy, const char *map,
	       __u64 key);
void entry_close(struct entry *e);
int entry_write(const struct entry *e);
void entry_restore(const struct entry *e);
cJSON *read_entry(const char *map);
bool is_dry_run(void);

/* tunables.c: what can be set in maps */
bool is_entry(const char *setting);
int entries_set(const struct policy *policy);

/* load.c: who is in charge */
const char *pinned_dir(void);
int pinned_map(const char *name);
int pinned_ops(void);
int link_map_id(int link);
int put_in_charge(const char *name);
int end_charge(int link);

/* The commands; each returns an exit status. */
int cmd_load(int argc, char **argv);	/* load.c */
int cmd_swap(int argc, char **argv);
int cmd_unload(int argc, char **argv);
int cmd_run(int argc, char **argv);	/* run.c */
int cmd_set(int argc, char **argv);	/* tunables.c */
int cmd_status(int argc, char **argv);	/* status.c */
int cmd_list(int argc, char **argv);
int cmd_top(int argc, char **argv);	/* top.c */
int cmd_metrics(int argc, char **argv);	/* metrics.c */
int cmd_estimate(int argc, char **argv);	/* estimate.c */
int cmd_doctor(int argc, char **argv);	/* doctor.c */
int cmd_explain(int argc, char **argv);	/* explain.c */
int cmd_dump(int argc, char **argv);	/* dump.c */
int cmd_help(int argc, char **argv);	/* main.c */

#endif /* __KSMX_H */
