// SPDX-License-Identifier: GPL-2.0
/*
 * load, swap, unload: what changes who is in charge.
 *
 * The pinned link keeps a policy in charge after ksmx is gone, the pinned maps
 * are for looking at.  A command either does all of its work or leaves things
 * as they were: maps are pinned first, the kernel is asked last.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bpf/bpf.h>

#include "ksmx.h"

/* One ksmx at a time changes things; the lock goes with the process. */
static int lock_pins(void)
{
	int fd;

	if (mkdir(PIN_DIR, 0700) && errno != EEXIST)
		goto fail;
	fd = open(PIN_DIR, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 || flock(fd, LOCK_EX))
		goto fail;
	return KSMX_OK;

fail:
	if (errno == EACCES || errno == EPERM)
		return fail(KSMX_NO_PRIVILEGE,
			    "not permitted to write to " BPFFS ": run as root");
	return fail(KSMX_FAILED, "cannot use " PIN_DIR ": %s",
		    strerror(errno));
}

static void remove_maps(const char *dir)
{
	struct dirent *entry;
	DIR *d = opendir(dir);

	if (!d)
		return;
	while ((entry = readdir(d)))
		unlinkat(dirfd(d), entry->d_name, 0);
	closedir(d);
	rmdir(dir);
}

/* The policy is open but could not be loaded: say why. */
static int fail_load(const struct policy *policy, int err)
{
	const char *why = verifier_said();

	if (why) {
		const char *reason = strrchr(why, '\n');

		return fail(KSMX_BAD_OBJECT,
			    "the verifier refused %s: %s; -v shows all of this log:\n%s",
			    policy->path, reason ? reason + 1 : why, why);
	}
	if (err == -EPERM || err == -EACCES)
		return fail(KSMX_NO_PRIVILEGE,
			    "not permitted to load BPF programs: run as root");
	why = libbpf_said();
	if (err == -ENOMEM || !why)
		return fail(err == -ENOMEM ? KSMX_FAILED : KSMX_BAD_OBJECT,
			    "cannot load %s: %s", policy->path,
			    strerror(-err));
	return fail(KSMX_BAD_OBJECT,
		    "%s does not fit this kernel, build it anew: %s",
		    policy->path, why);
}

/* Loads programs and maps, and pins the maps; nobody is asked for anything. */
static int prepare(const char *name, struct policy *policy)
{
	size_t i;
	int err, ret;

	ret = policy_open(name, policy);
	if (ret)
		return ret;

	for (i = 0; i < options.nr_sets; i++) {
		ret = policy_set(policy, options.sets[i]);
		if (ret)
			goto close;
	}

	err = bpf_object__load(policy->obj);
	if (err) {
		ret = fail_load(policy, err);
		goto close;
	}

	remove_maps(PIN_MAPS_NEW);	/* of a ksmx that was killed */
	err = bpf_object__pin_maps(policy->obj, PIN_MAPS_NEW);
	if (err) {
		ret = fail(KSMX_FAILED, "cannot pin maps at " PIN_MAPS ": %s",
			   strerror(-err));
		goto close;
	}
	return KSMX_OK;

close:
	bpf_object__close(policy->obj);
	remove_maps(PIN_MAPS_NEW);
	return ret;
}

/* Makes the new maps the pinned ones, in one step. */
static void replace_maps(void)
{
	if (renameat2(AT_FDCWD, PIN_MAPS_NEW, AT_FDCWD, PIN_MAPS,
		      RENAME_EXCHANGE))
		rename(PIN_MAPS_NEW, PIN_MAPS);
	remove_maps(PIN_MAPS_NEW);
}

static int fail_kernel(const struct policy *policy, int err)
{
	if (err == -EPERM || err == -EACCES)
		return fail(KSMX_NO_PRIVILEGE,
			    "not permitted to put a policy in charge: run as root");
	if (err == -EINVAL)
		return fail(KSMX_FAILED,
			    "the kernel refused '%s': check name (A-Z a-z 0-9 _ -), timeout_ms, init()",
			    policy_name(policy));
	return fail(KSMX_FAILED, "policy '%s' could not start: %s",
		    policy_name(policy), strerror(-err));
}

static int report_done(const struct policy *policy, const char *what)
{
	char state[32] = "";
	bool idle;

	idle = sysfs_read("state", state, sizeof(state)) &&
	       !strcmp(state, "idle");
	if (options.json) {
		cJSON *object = cJSON_CreateObject();

		cJSON_AddStringToObject(object, "policy", policy_name(policy));
		cJSON_AddStringToObject(object, "file", policy->path);
		cJSON_AddStringToObject(object, "state", state);
		cJSON_AddStringToObject(object, "link", PIN_LINK);
		cJSON_AddStringToObject(object, "maps", PIN_MAPS);
		return print_json(object);
	}
	printf("%s %s%s\n", what, policy_name(policy),
	       idle ? "; idle until: echo 1 > " SYSFS "/run" : "");
	return KSMX_OK;
}

int cmd_load(const char *name)
{
	struct policy policy;
	struct bpf_link *link;
	int err, ret;

	ret = check_loadable() ?: lock_pins();
	if (ret)
		return ret;
	if (!access(PIN_LINK, F_OK)) {
		char now[64] = "", state[32] = "";

		sysfs_read("policy", now, sizeof(now));
		sysfs_read("state", state, sizeof(state));
		if (*now)
			return fail(KSMX_WRONG_STATE,
				    "'%s' is loaded already (%s): ksmx swap %s",
				    now, state, name);
		return fail(KSMX_WRONG_STATE,
			    "a policy that ended is still pinned: ksmx unload, then load %s",
			    name);
	}

	ret = prepare(name, &policy);
	if (ret)
		return ret;

	link = bpf_map__attach_struct_ops(policy.ops);
	if (!link) {
		err = -errno;
		if (err == -EBUSY)
			ret = fail(KSMX_WRONG_STATE,
				   "a policy that ksmx did not load is in charge: see bpftool link");
		else
			ret = fail_kernel(&policy, err);
		goto out;
	}

	err = bpf_link__pin(link, PIN_LINK);
	if (err)
		ret = fail(KSMX_FAILED, "cannot pin " PIN_LINK ": %s",
			   strerror(-err));
	else
		replace_maps();
	/* Gives up our reference; only a pin keeps the policy in charge. */
	bpf_link__destroy(link);
	if (!ret)
		ret = report_done(&policy, "loaded");
out:
	remove_maps(PIN_MAPS_NEW);
	bpf_object__close(policy.obj);
	return ret;
}

/*
 * A link takes only a map whose value is complete.  libbpf keeps that value to
 * itself and writes it as the first half of attaching; the second half fails,
 * since a policy is in charge.
 */
static int complete_ops(const struct policy *policy)
{
	struct bpf_link *link;

	link = bpf_map__attach_struct_ops(policy->ops);
	if (link) {
		bpf_link__destroy(link);
		return -ENOLINK;
	}
	return errno == EBUSY ? 0 : -errno;
}

int cmd_swap(const char *name)
{
	struct policy policy;
	int err, ret, link;

	ret = check_loadable() ?: lock_pins();
	if (ret)
		return ret;
	link = bpf_obj_get(PIN_LINK);
	if (link < 0)
		return fail(KSMX_WRONG_STATE,
			    "nothing is loaded: ksmx load %s", name);

	ret = prepare(name, &policy);
	if (ret)
		goto out;

	err = complete_ops(&policy);
	if (!err)
		err = bpf_link_update(link, bpf_map__fd(policy.ops), NULL);
	if (!err) {
		replace_maps();
		ret = report_done(&policy, "swapped to");
	} else {
		remove_maps(PIN_MAPS_NEW);
		if (err == -ENOLINK)
			ret = fail(KSMX_WRONG_STATE,
				   "the policy ended meanwhile: ksmx unload, then load %s",
				   name);
		else
			ret = fail_kernel(&policy, err);
	}
	bpf_object__close(policy.obj);
out:
	close(link);
	return ret;
}

int cmd_unload(const char *unused)
{
	char name[64] = "";
	int link, ret;

	ret = check_loadable() ?: lock_pins();
	if (ret)
		return ret;
	link = bpf_obj_get(PIN_LINK);
	if (link < 0)
		return fail(KSMX_WRONG_STATE, "nothing is loaded");

	sysfs_read("policy", name, sizeof(name));
	/* Detach, since dropping the last reference ends it only some time
	 * later, and others may hold one.  An ejected policy is detached.
	 */
	if (bpf_link_detach(link) && errno != ENOLINK && errno != EINVAL) {
		ret = fail(KSMX_FAILED, "cannot detach the policy: %s",
			   strerror(errno));
		close(link);
		return ret;
	}
	close(link);
	unlink(PIN_LINK);
	remove_maps(PIN_MAPS);
	remove_maps(PIN_MAPS_NEW);

	if (options.json) {
		cJSON *object = cJSON_CreateObject();

		cJSON_AddStringToObject(object, "unloaded", name);
		return print_json(object);
	}
	printf("unloaded %s\n", name);
	return KSMX_OK;
}
