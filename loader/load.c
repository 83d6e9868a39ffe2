// SPDX-License-Identifier: GPL-2.0
/*
 * load, swap, unload: what changes who is in charge.
 *
 * The pinned link keeps a policy in charge after ksmx is gone, the pinned maps
 * are for looking at.  A command either does all of its work or leaves things
 * as they were.  Where it is killed in between, the link tells what is true,
 * and settle() makes the maps fit:
 *
 *	load	maps are pinned, the policy is put in charge, the link pinned.
 *		Until then all ends with ksmx.
 *	swap	the new maps are pinned beside the old ones, the link changes
 *		hands, the maps change places.
 *	unload	the link is detached, the pins are removed.  To unmerge, the
 *		button is pressed and released, with a folder made meanwhile.
 *
 * Knobs of the kernel are set before the policy is in charge, so that no page
 * is merged by rules that it was not to be merged by.  Who is killed then may
 * leave them set, which the same command given again makes right.  Some have
 * the kernel unmerge everything (strict when it changes, run=2): that has
 * happened when the policy is refused after all, and can not be put back with
 * the knob.  The policy that goes on merges the same again.  Strict mode that
 * comes a moment late would be worse.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bpf/bpf.h>

#include "ksmx.h"

#define PIN_MAPS_NEW	PIN_DIR "/maps_new"
/* A folder, since nothing else can be here: the button was 1. */
#define PIN_UNMERGING	PIN_DIR "/unmerging"

/* Held by who changes things. */
static int lock_fd = -1;

static int fail_pins(void)
{
	if (errno == EACCES || errno == EPERM)
		return fail(KSMX_NO_PRIVILEGE,
			    "not permitted to write to " BPFFS ": run as root");
	return fail(KSMX_FAILED, "cannot use " PIN_DIR ": %s",
		    strerror(errno));
}

/* One ksmx at a time changes things; the lock goes with the process. */
static int lock_pins(void)
{
	if (mkdir(PIN_DIR, 0700) && errno != EEXIST)
		return fail_pins();
	lock_fd = open(PIN_DIR, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (lock_fd < 0 || flock(lock_fd, LOCK_EX))
		return fail_pins();
	return KSMX_OK;
}

static void unlock_pins(void)
{
	close(lock_fd);
	lock_fd = -1;
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

/* Return: id of the map whose policy the link has in charge, 0 for none. */
int link_map_id(int link)
{
	struct bpf_link_info info = {};
	__u32 len = sizeof(info);

	if (bpf_link_get_info_by_fd(link, &info, &len))
		return 0;
	return info.struct_ops.map_id;
}

/* The map of this id, if it is one of those pinned in @dir; or -1. */
static int open_map(const char *dir, __u32 id)
{
	struct dirent *entry;
	DIR *d = opendir(dir);
	int found = -1;

	while (d && found < 0 && (entry = readdir(d))) {
		struct bpf_map_info info = {};
		__u32 len = sizeof(info);
		char path[PATH_MAX];
		int fd;

		snprintf(path, sizeof(path), "%s/%s", dir, entry->d_name);
		fd = bpf_obj_get(path);
		if (fd < 0)
			continue;
		if (!bpf_map_get_info_by_fd(fd, &info, &len) && info.id == id)
			found = fd;
		else
			close(fd);
	}
	if (d)
		closedir(d);
	return found;
}

static bool maps_hold(const char *dir, __u32 id)
{
	int fd = open_map(dir, id);

	if (fd < 0)
		return false;
	close(fd);
	return true;
}

/* The id of the policy that ksmx has put in charge, its struct_ops map; or 0. */
static int ops_id(void)
{
	int link = bpf_obj_get(PIN_LINK), id;

	if (link < 0)
		return 0;
	id = link_map_id(link);
	close(link);
	if (!id)
		errno = ENOENT;
	return id;
}

/*
 * Where the maps of that policy are.
 * Return: a folder, or NULL if there is no such policy.
 */
const char *pinned_dir(void)
{
	int id = ops_id();

	if (!id)
		return NULL;
	return maps_hold(PIN_MAPS, id) ? PIN_MAPS : PIN_MAPS_NEW;
}

/* Its struct_ops map.  Return: a descriptor, or -1. */
int pinned_ops(void)
{
	int id = ops_id(), fd;

	if (!id)
		return -1;
	fd = open_map(PIN_MAPS, id);
	return fd < 0 ? open_map(PIN_MAPS_NEW, id) : fd;
}

/* One of them.  Return: a descriptor, or -1. */
int pinned_map(const char *name)
{
	const char *dir = pinned_dir();
	char path[PATH_MAX];

	if (!dir)
		return -1;
	snprintf(path, sizeof(path), "%s/%s", dir, name);
	return bpf_obj_get(path);
}

/* Makes the new maps the pinned ones, in one step. */
static void replace_maps(void)
{
	if (renameat2(AT_FDCWD, PIN_MAPS_NEW, AT_FDCWD, PIN_MAPS,
		      RENAME_EXCHANGE))
		rename(PIN_MAPS_NEW, PIN_MAPS);
	remove_maps(PIN_MAPS_NEW);
}

static void remove_pins(void)
{
	unlink(PIN_LINK);
	remove_maps(PIN_MAPS);
	remove_maps(PIN_MAPS_NEW);
}

/* Puts the button back, unless somebody wants it otherwise meanwhile. */
static int put_back(const char *value)
{
	char run[16] = "";

	if (sysfs_read("run", run, sizeof(run)) && !strcmp(run, "2"))
		return sysfs_write("run", value);
	return 0;
}

/* The same, where it was 1.  Return: 0 or a negative errno. */
static int release_button(void)
{
	int err;

	if (access(PIN_UNMERGING, F_OK))
		return 0;
	err = put_back("1");
	rmdir(PIN_UNMERGING);
	return err;
}

/*
 * Finishes what a ksmx that was killed has begun, and forgets policies that
 * ended by themselves.
 * Return: the link of the policy in charge, or -1.
 */
static int settle(void)
{
	int link = bpf_obj_get(PIN_LINK);
	int id = link >= 0 ? link_map_id(link) : 0;

	release_button();
	if (!id) {
		if (link >= 0)
			close(link);
		remove_pins();
		return -1;
	}
	if (!maps_hold(PIN_MAPS, id) && maps_hold(PIN_MAPS_NEW, id))
		replace_maps();
	remove_maps(PIN_MAPS_NEW);
	return link;
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

static int check_layout(const struct policy *policy)
{
	char *why = policy_misfit(policy, kernel_btf());
	int ret;

	if (!why)
		return KSMX_OK;
	ret = fail(KSMX_BAD_OBJECT, "%s was built for another kernel: %s",
		   policy->path, why);
	free(why);
	return ret;
}

/* Loads programs and maps, and pins the maps; nobody is asked for anything. */
static int prepare(const char *name, struct policy *policy)
{
	size_t i;
	int err, ret;

	ret = policy_open(name, policy);
	if (ret)
		return ret;

	ret = check_layout(policy);
	for (i = 0; i < options.nr_sets && !ret; i++)
		ret = is_knob(options.sets[i]) ? knob_set(options.sets[i]) :
		      is_entry(options.sets[i]) ? KSMX_OK :
			policy_set(policy, options.sets[i]);
	if (ret)
		goto close;

	err = bpf_object__load(policy->obj);
	if (err) {
		ret = fail_load(policy, err);
		goto close;
	}
	ret = entries_set(policy);
	if (ret)
		goto close;
	err = bpf_object__pin_maps(policy->obj, PIN_MAPS_NEW);
	if (!err)
		return KSMX_OK;
	ret = fail(KSMX_FAILED, "cannot pin maps at " PIN_MAPS ": %s",
		   strerror(-err));
	remove_maps(PIN_MAPS_NEW);
close:
	bpf_object__close(policy->obj);
	return ret;
}

static int fail_kernel(const struct policy *policy, int err)
{
	if (err == -EPERM || err == -EACCES)
		return fail(KSMX_NO_PRIVILEGE,
			    "not permitted to put a policy in charge: run as root");
	if (err == -EBUSY)
		return fail(KSMX_WRONG_STATE,
			    "a policy that ksmx did not load is in charge: see bpftool link");
	if (err == -ETIME)
		return fail(KSMX_FAILED,
			    "init() of %s took longer than its timeout_ms: let scan() do the work",
			    policy_name(policy));
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
		cJSON_AddStringToObject(object, "file",
					printable(policy->path));
		cJSON_AddStringToObject(object, "state", state);
		cJSON_AddStringToObject(object, "link", PIN_LINK);
		cJSON_AddStringToObject(object, "maps", PIN_MAPS);
		return print_json(object);
	}
	printf("%s %s%s\n", what, policy_name(policy),
	       idle ? "; idle until: echo 1 > " SYSFS "/run" : "");
	return KSMX_OK;
}

static int load_policy(const char *name)
{
	struct policy policy;
	struct bpf_link *link;
	int err, ret;

	ret = prepare(name, &policy);
	if (ret)
		return ret;
	replace_maps();

	ret = knobs_write();
	if (ret)
		goto out;
	link = bpf_map__attach_struct_ops(policy.ops);
	if (!link) {
		ret = fail_kernel(&policy, -errno);
		knobs_restore();
		goto out;
	}
	err = bpf_link__pin(link, PIN_LINK);
	if (err) {
		ret = fail(KSMX_FAILED, "cannot pin " PIN_LINK ": %s",
			   strerror(-err));
		knobs_restore();
	}
	/* Gives up our reference; only a pin keeps the policy in charge. */
	bpf_link__destroy(link);
	if (!ret)
		ret = report_done(&policy, "loaded");
out:
	if (access(PIN_LINK, F_OK))
		remove_maps(PIN_MAPS);
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

static int swap_policy(int link, const char *name)
{
	struct policy policy;
	int err, ret;

	ret = prepare(name, &policy);
	if (ret)
		return ret;

	ret = knobs_write();
	if (ret) {
		remove_maps(PIN_MAPS_NEW);
		goto close;
	}
	err = complete_ops(&policy);
	if (!err)
		err = bpf_link_update(link, bpf_map__fd(policy.ops), NULL);
	if (!err) {
		replace_maps();
		ret = report_done(&policy, "swapped to");
	} else {
		knobs_restore();
		remove_maps(PIN_MAPS_NEW);
		if (err == -ENOLINK)
			ret = fail(KSMX_WRONG_STATE,
				   "the policy ended meanwhile: ksmx load %s",
				   name);
		else
			ret = fail_kernel(&policy, err);
	}
close:
	bpf_object__close(policy.obj);
	return ret;
}

int cmd_load(int argc, char **argv)
{
	char now[64] = "", state[32] = "";
	int ret;

	ret = check_loadable() ?: lock_pins();
	if (ret)
		return ret;
	if (settle() < 0)
		return load_policy(argv[0]);
	sysfs_read("policy", now, sizeof(now));
	sysfs_read("state", state, sizeof(state));
	return fail(KSMX_WRONG_STATE, "'%s' is loaded already (%s): ksmx swap %s",
		    now, state, argv[0]);
}

/* The kernel may detach the link of a policy that it ejects. */
static bool was_ejected(void)
{
	char state[32] = "";

	return sysfs_read("state", state, sizeof(state)) &&
	       !strcmp(state, "ejected");
}

int cmd_swap(int argc, char **argv)
{
	int ret, link;

	ret = check_loadable() ?: lock_pins();
	if (ret)
		return ret;
	link = settle();
	if (link < 0 && was_ejected())
		return load_policy(argv[0]);
	if (link < 0)
		return fail(KSMX_WRONG_STATE,
			    "nothing is loaded: ksmx load %s", argv[0]);
	return swap_policy(link, argv[0]);
}

/*
 * Loads a policy, or swaps to it.
 * Return: the link, to watch, or the negative of an exit status.
 */
int put_in_charge(const char *name)
{
	int link, ret;

	ret = check_loadable() ?: lock_pins();
	if (ret)
		return -ret;
	link = settle();
	if (link >= 0) {
		ret = swap_policy(link, name);
	} else {
		ret = load_policy(name);
		if (!ret) {
			link = bpf_obj_get(PIN_LINK);
			if (link < 0)
				ret = fail_pins();
		}
	}
	unlock_pins();
	return ret ? -ret : link;
}

/*
 * Detach, since dropping the last reference ends a policy only some time
 * later, and others may hold one.  An ejected policy may be detached.
 */
static int detach(int link)
{
	if (bpf_link_detach(link) && errno != ENOLINK && errno != EINVAL)
		return fail(KSMX_FAILED, "cannot detach the policy: %s",
			    strerror(errno));
	return KSMX_OK;
}

/* Ends what put_in_charge() has begun, and nothing else. */
int end_charge(int link)
{
	int ret;

	ret = lock_pins();
	if (ret)
		return ret;
	ret = detach(link);
	link = settle();
	if (link >= 0)
		close(link);
	unlock_pins();
	return ret;
}

/* Gives all pages back, and leaves the button as it was. */
static int unmerge_all(void)
{
	char run[16] = "";
	int err;

	sysfs_read("run", run, sizeof(run));
	if (!strcmp(run, "1") && mkdir(PIN_UNMERGING, 0700))
		return fail_pins();
	err = sysfs_write("run", "2");
	/* Who is killed before this leaves 2, which merges as little as 0. */
	if (!strcmp(run, "0"))
		err = put_back(run) ?: err;
	err = release_button() ?: err;
	if (err)
		return fail(err == -EACCES ? KSMX_NO_PRIVILEGE : KSMX_FAILED,
			    "cannot write to " SYSFS "/run: %s",
			    strerror(-err));
	return KSMX_OK;
}

int cmd_unload(int argc, char **argv)
{
	char name[64] = "";
	int link, ret;

	ret = check_pins() ?: lock_pins();
	if (ret)
		return ret;
	/* An ejected policy may be detached, and is unloaded all the same. */
	if (!access(PIN_LINK, F_OK))
		sysfs_read("policy", name, sizeof(name));
	else if (!options.unmerge)
		return fail(KSMX_WRONG_STATE, "nothing is loaded");

	link = settle();
	if (link >= 0) {
		ret = detach(link);
		if (ret)
			return ret;
		remove_pins();
	}
	ret = options.unmerge ? unmerge_all() : KSMX_OK;
	if (ret)
		return ret;

	if (options.json) {
		cJSON *object = cJSON_CreateObject();

		cJSON_AddStringToObject(object, "unloaded", name);
		cJSON_AddBoolToObject(object, "unmerged", options.unmerge);
		return print_json(object);
	}
	if (*name)
		printf("unloaded %s\n", name);
	if (options.unmerge)
		printf("all files have their own pages\n");
	return KSMX_OK;
}
