// SPDX-License-Identifier: GPL-2.0
/*
 * set: numbers that a policy, or the kernel, lets people change while it runs.
 */
#include <errno.h>
#include <glob.h>
#include <limits.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <bpf/bpf.h>

#include "ksmx.h"

/* All that changes, or nothing of it: entries of maps, and knobs. */
static struct entry *entries;
static size_t nr_entries;

static int check_loaded(void)
{
	if (pinned_dir() || errno != ENOENT)
		return KSMX_OK;
	return fail(KSMX_WRONG_STATE,
		    "nothing is loaded: ksmx load POLICY --set NAME=NUMBER");
}

static bool has_variable(const char *pin, const char *name)
{
	const struct btf_var_secinfo *var;
	const struct btf_type *type;
	int fd = bpf_obj_get(pin), i;
	struct bpf_map_info info;
	struct btf *btf = NULL;
	bool found = false;

	if (fd < 0)
		return false;
	if (!map_value_type(fd, &info, &btf, &type) && btf_is_datasec(type)) {
		var = btf_var_secinfos(type);
		for (i = 0; i < btf_vlen(type) && !found; i++, var++)
			found = !strcmp(name, btf__name_by_offset(btf,
				btf__type_by_id(btf, var->type)->name_off));
	}
	btf__free(btf);
	close(fd);
	return found;
}

/* Does the loaded policy have a constant of this name? */
static bool is_constant(const char *name)
{
	const char *dir = pinned_dir();
	char pattern[PATH_MAX];
	bool found = false;
	glob_t pins;
	size_t i;

	snprintf(pattern, sizeof(pattern), "%s/*_rodata", dir ?: "");
	if (!dir || glob(pattern, 0, NULL, &pins))
		return false;
	for (i = 0; i < pins.gl_pathc && !found; i++)
		found = has_variable(pins.gl_pathv[i], name);
	globfree(&pins);
	return found;
}

static int fail_unknown(const char *name)
{
	char policy[64] = "";
	const char *dot = strrchr(name, '.');

	sysfs_read("policy", policy, sizeof(policy));
	if ((dot && !strcmp(dot, ".max_entries")) || is_constant(name))
		return fail(KSMX_USAGE,
			    "%s can not change while %s runs: ksmx swap %s --set %s=...",
			    name, policy, policy, name);
	return fail(KSMX_USAGE, "%s has no tunable '%s': ksmx set shows all",
		    policy, name);
}

/* A number, or the path of a cgroup. */
static int parse_key(const char *text, __u64 *key)
{
	struct statfs fs;
	struct stat st;
	char *end;

	errno = 0;
	*key = strtoull(text, &end, 0);
	if (!errno && !*end && end != text && *text != '-')
		return KSMX_OK;
	if (statfs(text, &fs) || stat(text, &st))
		return fail(KSMX_USAGE, "%s: %s", text, strerror(errno));
	if (fs.f_type != CGROUP2_SUPER_MAGIC || !S_ISDIR(st.st_mode))
		return fail(KSMX_USAGE,
			    "%s is no cgroup: a number, or a path as in /sys/fs/cgroup/machine.slice",
			    text);
	*key = st.st_ino;
	return KSMX_OK;
}

/* Takes MAP[KEY].MEMBER apart; a plain MEMBER is a tunable. */
static int parse_place(char *name, const char **map, __u64 *key,
		       const char **member)
{
	char *open = strchr(name, '['), *close = strrchr(name, ']');

	*map = "tunables";
	*key = 0;
	*member = name;
	if (!open)
		return KSMX_OK;
	if (open == name || !close || close < open || close[1] != '.')
		return fail(KSMX_USAGE, "'%s' is not MAP[KEY].MEMBER", name);
	*open = '\0';
	*close = '\0';
	*map = name;
	*member = close + 2;
	return parse_key(open + 1, key);
}

/* The entry, with what has been set in it so far.  Return: as entry_open(). */
static int find_entry(const struct policy *policy, const char *map, __u64 key,
		      struct entry **entry)
{
	size_t i;
	int err;

	for (i = 0; i < nr_entries; i++) {
		*entry = &entries[i];
		if (entries[i].key == key && !strcmp(entries[i].name, map))
			return 0;
	}
	*entry = &entries[nr_entries];
	err = entry_open(*entry, policy, map, key);
	if (!err)
		nr_entries++;
	return err;
}

static int fail_entry(const struct policy *policy, const char *name,
		      const char *map, int err)
{
	if (err != -ENOENT && err != -EINVAL && err != -ERANGE)
		return fail(KSMX_FAILED, "cannot read the map '%s': %s", map,
			    strerror(-err));
	if (map != name)
		return fail_unknown(name);
	return fail(KSMX_USAGE, "no map '%s' with such keys: see %s", map,
		    policy ? "ksm_ext-policies(7)" : PIN_MAPS);
}

/*
 * Takes note of NAME=NUMBER or MAP[KEY].MEMBER=NUMBER for write_entries(), in
 * a policy that is loaded or, with NULL, in the one in charge.
 */
static int set_entry(const struct policy *policy, const char *setting)
{
	const char *value, *map, *member;
	char name[PATH_MAX + 128];
	struct entry *e;
	size_t offset;
	__u64 key;
	__u32 id;
	int ret;

	ret = parse_setting(setting, name, sizeof(name), &value) ?:
	      parse_place(name, &map, &key, &member);
	if (ret)
		return ret;
	ret = find_entry(policy, map, key, &e);
	if (ret)
		return fail_entry(policy, name, map, ret);
	id = find_member(e->btf, e->type, member, &offset);
	if (!id && map != name)
		return fail_unknown(member);
	if (!id)
		return fail(KSMX_USAGE, "entries of '%s' have no '%s'", map,
			    member);
	return set_number(resolve(e->btf, id), e->data + offset, member, value);
}

/* All that set_entry() has taken note of, or nothing of it */
static int write_entries(void)
{
	size_t i;
	int ret, err;

	for (i = 0; i < nr_entries; i++) {
		err = entry_write(&entries[i]);
		if (!err)
			continue;
		ret = fail(KSMX_FAILED, "cannot change the map '%s': %s",
			   entries[i].name, strerror(-err));
		while (i--)
			entry_restore(&entries[i]);
		return ret;
	}
	return KSMX_OK;
}

/* The same, and what knob_set() has taken note of */
static int write_all(void)
{
	int ret;

	ret = knobs_write();
	if (ret)
		return ret;
	ret = write_entries();
	if (ret)
		knobs_restore();
	return ret;
}

/* All tunables and knobs, and what else was set */
static int show_all(int argc, char **argv)
{
	cJSON *list = read_entry("tunables") ?: cJSON_CreateObject();
	char name[PATH_MAX + 128];
	const char *value;
	const cJSON *item;
	int i;

	add_knobs(list);
	for (i = 0; i < argc; i++) {
		if (strchr(argv[i], '[') &&
		    !parse_setting(argv[i], name, sizeof(name), &value))
			cJSON_AddNumberToObject(list, name,
						strtod(value, NULL));
	}
	if (options.json)
		return print_json(list);
	cJSON_ArrayForEach(item, list)
		printf("%-24s %.0f\n", item->string, item->valuedouble);
	cJSON_Delete(list);
	return KSMX_OK;
}

static int begin_entries(size_t nr)
{
	entries = calloc(nr + 1, sizeof(*entries));
	return entries ? KSMX_OK : fail(KSMX_FAILED, "out of memory");
}

static void end_entries(void)
{
	while (nr_entries)
		entry_close(&entries[--nr_entries]);
	free(entries);
}

/* Is this MAP[KEY].MEMBER=NUMBER? */
bool is_entry(const char *setting)
{
	return strchr(setting, '[');
}

/* When a policy begins, it copies its constants to its tunables. */
static int check_lasts(const char *setting)
{
	if (strncmp(setting, "tunables[", strlen("tunables[")))
		return KSMX_OK;
	return fail(KSMX_USAGE,
		    "--set %s: give tunables by their names alone, as in --set %s",
		    setting, strrchr(setting, '.') ? strrchr(setting, '.') + 1 :
						     "idle_ms=500");
}

/* Obeys --set MAP[KEY].MEMBER=NUMBER for a policy that is not in charge yet. */
int entries_set(const struct policy *policy)
{
	int ret = begin_entries(options.nr_sets);
	size_t i;

	for (i = 0; i < options.nr_sets && !ret; i++)
		if (is_entry(options.sets[i]))
			ret = check_lasts(options.sets[i]) ?:
			      set_entry(policy, options.sets[i]);
	ret = ret ?: write_entries();
	end_entries();
	return ret;
}

int cmd_set(int argc, char **argv)
{
	int i, ret;

	ret = check_pins() ?: argc ? 0 : check_loaded();
	ret = ret ?: begin_entries(argc);
	if (ret)
		return ret;
	for (i = 0; i < argc && !ret; i++)
		ret = is_knob(argv[i]) ? knob_set(argv[i]) :
		      check_loaded() ?: set_entry(NULL, argv[i]);
	ret = ret ?: write_all();
	end_entries();
	return ret ?: show_all(argc, argv);
}
