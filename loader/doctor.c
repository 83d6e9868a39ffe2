// SPDX-License-Identifier: GPL-2.0
/*
 * doctor: what is missing here, and how to get it.
 */
#include <errno.h>
#include <linux/capability.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <sys/vfs.h>
#include <unistd.h>
#include <zlib.h>

#include "ksmx.h"

enum grade {
	GOOD,
	NOTE,		/* works, but one may want to know */
	BAD,		/* no policy can be loaded */
};

static cJSON *findings;
static int first_bad;

/* One line of the report; @status is that to exit with if it is BAD. */
static void __attribute__((format(printf, 4, 5)))
found(enum grade grade, int status, const char *what, const char *fmt, ...)
{
	static const char * const grades[] = { "ok", "note", "missing" };
	cJSON *item = cJSON_CreateObject();
	char *text = NULL;
	va_list ap;

	va_start(ap, fmt);
	if (vasprintf(&text, fmt, ap) < 0)
		text = NULL;
	va_end(ap);
	cJSON_AddStringToObject(item, "what", what);
	cJSON_AddStringToObject(item, "grade", grades[grade]);
	cJSON_AddStringToObject(item, "text", text ?: "");
	cJSON_AddItemToArray(findings, item);
	free(text);
	if (grade == BAD && !first_bad)
		first_bad = status;
}

static void look_at_kernel(void)
{
	struct utsname uts;

	uname(&uts);
	if (!access(SYSFS, F_OK))
		found(GOOD, 0, "kernel", "%s has ksm_ext", uts.release);
	else
		found(BAD, KSMX_NO_SUPPORT, "kernel",
		      "%s lacks ksm_ext: install the patched linux-image (make deb) and boot it",
		      uts.release);
}

static const struct {
	const char *line;
	const char *why;
} wanted[] = {
	{ "CONFIG_KSM_EXT=y", "merging" },
	{ "CONFIG_BPF_SYSCALL=y", "policies" },
	{ "CONFIG_BPF_JIT=y", "policies" },
	{ "CONFIG_DEBUG_INFO_BTF=y", "policies" },
	{ "CONFIG_PSI=y", "policies that look at memory pressure" },
	{ "CONFIG_MEMCG=y", "policies that look at cgroups" },
};

/* The config, plain or packed; NULL if it can not be read. */
static gzFile open_config(char *path, size_t size)
{
	struct utsname uts;

	uname(&uts);
	snprintf(path, size, "/boot/config-%s", uts.release);
	if (!access("/proc/config.gz", R_OK))
		snprintf(path, size, "/proc/config.gz");
	return gzopen(path, "r");
}

static void look_at_config(void)
{
	bool have[ARRAY_SIZE(wanted)] = {};
	char path[PATH_MAX], line[1024];
	gzFile f = open_config(path, sizeof(path));
	bool all = true;
	size_t i;

	if (!f) {
		found(NOTE, 0, "config", "cannot be read: no %s", path);
		return;
	}
	while (gzgets(f, line, sizeof(line))) {
		line[strcspn(line, "\n")] = '\0';
		for (i = 0; i < ARRAY_SIZE(wanted); i++)
			have[i] |= !strcmp(line, wanted[i].line);
	}
	gzclose(f);
	for (i = 0; i < ARRAY_SIZE(wanted); i++) {
		if (!have[i])
			found(NOTE, 0, "config", "%s lacks %s, for %s", path,
			      wanted[i].line, wanted[i].why);
		all &= have[i];
	}
	if (all)
		found(GOOD, 0, "config", "%s has all that is wanted", path);
}

/* Does the ksm_ext_ops of this kernel suit the policies that are here? */
static void look_at_policies(void)
{
	cJSON *list = list_policies(), *item;

	if (!cJSON_GetArraySize(list))
		found(BAD, KSMX_BAD_OBJECT, "policies",
		      "none found: install the package ksm-ext, or set KSMX_POLICY_DIR");
	cJSON_ArrayForEach(item, list) {
		const char *file = get_string(item, "file");
		struct policy policy;
		char *why;

		snprintf(policy.path, sizeof(policy.path), "%s", file);
		if (policy_open_path(&policy))
			continue;
		why = kernel_btf() ?
		      policy_misfit(&policy, kernel_btf()) : NULL;
		if (why)
			found(NOTE, 0, "policies",
			      "%s was built for another kernel: %s", file,
			      why);
		else
			found(GOOD, 0, "policies", "%s", file);
		free(why);
		bpf_object__close(policy.obj);
	}
	cJSON_Delete(list);
}

static void look_at_btf(void)
{
	const struct btf *btf = kernel_btf();

	if (!btf)
		found(BAD, KSMX_NO_SUPPORT, "BTF",
		      "none: build the kernel with CONFIG_DEBUG_INFO_BTF=y");
	else if (btf__find_by_name_kind(btf, "ksm_ext_ops",
					BTF_KIND_STRUCT) < 0)
		found(BAD, KSMX_NO_SUPPORT, "BTF",
		      "no ksm_ext_ops: a kernel with ksm_ext, CONFIG_BPF_SYSCALL=y and CONFIG_BPF_JIT=y is needed");
	else
		found(GOOD, 0, "BTF", "has ksm_ext_ops");
}

static void look_at_privileges(void)
{
	char text[256];
	FILE *f;

	if (capable(CAP_SYS_ADMIN))
		found(GOOD, 0, "privileges", "CAP_SYS_ADMIN");
	else if (capable(CAP_BPF) && capable(CAP_PERFMON))
		found(GOOD, 0, "privileges",
		      "CAP_BPF and CAP_PERFMON; counters may be hidden");
	else
		found(BAD, KSMX_NO_PRIVILEGE, "privileges",
		      "be root, or have CAP_BPF, CAP_PERFMON and own " BPFFS);

	f = fopen("/sys/kernel/security/lockdown", "re");
	if (!f)
		return;
	if (fgets(text, sizeof(text), f) && strstr(text, "[confidentiality]"))
		found(BAD, KSMX_NO_PRIVILEGE, "lockdown",
		      "confidentiality: BPF may not read; boot with lockdown=integrity or less");
	fclose(f);
}

static void look_at_bpffs(void)
{
	struct statfs fs;

	if (statfs(BPFFS, &fs) || fs.f_type != BPF_FS_MAGIC)
		found(BAD, KSMX_NO_SUPPORT, "bpffs",
		      "not mounted: mount -t bpf bpf " BPFFS);
	else
		found(GOOD, 0, "bpffs", "mounted at " BPFFS);
}

/* Since 5.11 the memory of BPF belongs to a cgroup, not to this limit. */
static void look_at_memlock(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_MEMLOCK, &limit))
		return;
	if (limit.rlim_cur == RLIM_INFINITY)
		found(GOOD, 0, "memlock", "no limit");
	else
		found(GOOD, 0, "memlock",
		      "%llu KiB, which maps do not count against; the cgroup's limit does",
		      (unsigned long long)limit.rlim_cur >> 10);
}

static void look_at_file_systems(void)
{
	static const char * const types[] = { "ext4", "xfs", "btrfs", "erofs" };
	size_t nr[ARRAY_SIZE(types)] = {}, all = 0, i;
	char line[4096], type[64], *dash;
	FILE *f = fopen("/proc/self/mountinfo", "re");

	while (f && fgets(line, sizeof(line), f)) {
		dash = strstr(line, " - ");
		if (!dash || sscanf(dash, " - %63s", type) != 1)
			continue;
		for (i = 0; i < ARRAY_SIZE(types); i++) {
			if (!strcmp(type, types[i])) {
				nr[i]++;
				all++;
			}
		}
	}
	if (f)
		fclose(f);
	if (all)
		found(GOOD, 0, "files",
		      "mounted: %zu ext4, %zu xfs, %zu btrfs, %zu erofs; on others nothing is merged",
		      nr[0], nr[1], nr[2], nr[3]);
	else
		found(NOTE, 0, "files",
		      "no ext4, xfs, btrfs or erofs is mounted: there is nothing to merge");
}

static void look_at_state(void)
{
	char state[32] = "", policy[64] = "", run[16] = "", strict[16] = "";
	char end[RECORD_LEN] = "";

	if (!sysfs_read("state", state, sizeof(state)))
		return;
	sysfs_read("policy", policy, sizeof(policy));
	sysfs_read("run", run, sizeof(run));
	sysfs_read("exit", end, sizeof(end));
	if (strcmp(run, "1"))
		found(NOTE, 0, "run",
		      "%s: nothing is merged until: echo 1 > " SYSFS "/run",
		      run);
	if (sysfs_read("strict", strict, sizeof(strict)) &&
	    !strcmp(strict, "1"))
		found(GOOD, 0, "strict",
		      "on: writes do not tell what is shared, and take longer");
	if (!strcmp(state, "ejected"))
		found(NOTE, 0, "state", "%s was ejected: %s", policy, end);
	else
		found(GOOD, 0, "state", "%s%s%s", policy, *policy ? ": " : "",
		      state);
}

int cmd_doctor(int argc, char **argv)
{
	const cJSON *item;

	findings = cJSON_CreateArray();
	look_at_kernel();
	look_at_config();
	look_at_btf();
	look_at_privileges();
	look_at_bpffs();
	look_at_memlock();
	look_at_file_systems();
	look_at_policies();
	look_at_state();

	if (options.json)
		return print_json(findings) ?: first_bad;
	cJSON_ArrayForEach(item, findings)
		print_wrapped(printf("%-8s %-11s ", get_string(item, "grade"),
				     get_string(item, "what")),
			      21, get_string(item, "text"));
	cJSON_Delete(findings);
	return first_bad;
}
