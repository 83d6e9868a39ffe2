// SPDX-License-Identifier: GPL-2.0
/*
 * Tunables: numbers that a policy lets people change, found by their names in
 * its BTF.
 */
#include <errno.h>
#include <glob.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <bpf/bpf.h>

#include "ksmx.h"

/* The type behind typedefs, const and volatile. */
const struct btf_type *resolve(const struct btf *btf, __u32 id)
{
	return btf__type_by_id(btf, btf__resolve_type(btf, id));
}

/* Return: the id of the member's type, 0 if there is no such member. */
__u32 find_member(const struct btf *btf, const struct btf_type *type,
		  const char *name, size_t *offset)
{
	const struct btf_member *member = btf_members(type);
	int i;

	for (i = 0; i < btf_vlen(type); i++, member++) {
		if (strcmp(btf__name_by_offset(btf, member->name_off), name))
			continue;
		*offset = btf_member_bit_offset(type, i) / 8;
		return member->type;
	}
	return 0;
}

/* Takes NAME=VALUE apart. */
int parse_setting(const char *setting, char *name, size_t size,
		  const char **value)
{
	const char *equals = strchr(setting, '=');

	if (!equals || equals == setting ||
	    (size_t)(equals - setting) >= size)
		return fail(KSMX_USAGE, "'%s' is not NAME=NUMBER", setting);
	memcpy(name, setting, equals - setting);
	name[equals - setting] = '\0';
	*value = equals + 1;
	return KSMX_OK;
}

static bool fits(const struct btf_type *type, unsigned long long value)
{
	unsigned int bits = 8 * type->size;
	long long number = value;

	if (bits == 64)
		return true;
	if (btf_int_encoding(type) & BTF_INT_SIGNED)
		return number >= -(1LL << (bits - 1)) &&
		       number < 1LL << (bits - 1);
	if (btf_int_encoding(type) & BTF_INT_BOOL)
		return value <= 1;
	return value < 1ULL << bits;
}

/* Puts the number in @text to @data, if that is not NULL and the number fits. */
int set_number(const struct btf_type *type, void *data, const char *name,
	       const char *text)
{
	unsigned long long value;
	bool is_signed;
	char *end;

	if (!btf_is_int(type) || type->size > sizeof(value))
		return fail(KSMX_USAGE, "'%s' is not a number to be set",
			    name);
	is_signed = btf_int_encoding(type) & BTF_INT_SIGNED;
	errno = 0;
	value = is_signed ? strtoll(text, &end, 0) : strtoull(text, &end, 0);
	if (*end || end == text || (!is_signed && strchr(text, '-')))
		return fail(KSMX_USAGE, "%s: '%s' is not a number%s", name,
			    text, *text == '-' ? " from 0" : "");
	if (errno || !fits(type, value))
		return fail(KSMX_USAGE, "%s: %s is out of range", name, text);
	/* Little endian, as all machines that ksm_ext was built for. */
	if (data)
		memcpy(data, &value, type->size);
	return KSMX_OK;
}

/* The number at @data. */
double get_value(const struct btf_type *type, const void *data)
{
	unsigned long long value = 0;
	unsigned int shift = 64 - 8 * type->size;

	memcpy(&value, data, type->size);
	if (btf_int_encoding(type) & BTF_INT_SIGNED)
		return (long long)(value << shift) >> shift;
	return value;
}

/* What can be set in the kernel: as kernel.NAME, files in sysfs. */
#define KNOB_PREFIX "kernel."

static const struct knob {
	const char *name;
	unsigned int min;
	unsigned int max;
} knobs[] = {
	{ "run", 0, 2 },
	{ "max_page_sharing", 2, UINT_MAX },
	{ "max_cpu_percent", 1, 100 },
	{ "thrash_pages", 0, UINT_MAX },
	{ "strict", 0, 1 },
};

/* A knob to be set, and how to get back. */
struct knob_setting {
	const struct knob *knob;
	char before[16];
	char value[16];
};

/* Adds all that this kernel has, by name. */
void add_knobs(cJSON *object)
{
	char name[64], value[16];
	size_t i;

	for (i = 0; i < ARRAY_SIZE(knobs); i++) {
		if (!sysfs_read(knobs[i].name, value, sizeof(value)))
			continue;
		snprintf(name, sizeof(name), KNOB_PREFIX "%s", knobs[i].name);
		cJSON_AddNumberToObject(object, name, atof(value));
	}
}

static bool is_knob(const char *setting)
{
	return !strncmp(setting, KNOB_PREFIX, strlen(KNOB_PREFIX));
}

/* Checks "kernel.NAME=NUMBER"; sets nothing. */
static int knob_parse(struct knob_setting *set, const char *setting)
{
	const struct knob *knob = NULL;
	unsigned long long number;
	const char *value;
	char name[128];
	char *end;
	size_t i;
	int ret;

	ret = parse_setting(setting, name, sizeof(name), &value);
	if (ret)
		return ret;
	for (i = 0; i < ARRAY_SIZE(knobs) && !knob; i++) {
		if (!strcmp(name + strlen(KNOB_PREFIX), knobs[i].name))
			knob = &knobs[i];
	}
	if (!knob || !sysfs_read(knob->name, set->before, sizeof(set->before)))
		return fail(KSMX_USAGE,
			    "the kernel has no '%s': ksmx set shows all", name);
	errno = 0;
	number = strtoull(value, &end, 0);
	if (errno || *end || end == value || strchr(value, '-') ||
	    number < knob->min || number > knob->max)
		return fail(KSMX_USAGE, "%s: '%s' is not a number from %u to %u",
			    name, value, knob->min, knob->max);
	set->knob = knob;
	snprintf(set->value, sizeof(set->value), "%llu", number);
	return KSMX_OK;
}

/* Sets all, or none. */
static int knobs_write(const struct knob_setting *sets, int nr)
{
	int i, err = 0;

	for (i = 0; i < nr && !err; i++)
		err = sysfs_write(sets[i].knob->name, sets[i].value);
	if (!err)
		return KSMX_OK;
	fail(KSMX_FAILED, "cannot set " KNOB_PREFIX "%s to %s: %s",
	     sets[i - 1].knob->name, sets[i - 1].value, strerror(-err));
	for (i -= 2; i >= 0; i--)
		sysfs_write(sets[i].knob->name, sets[i].before);
	return KSMX_FAILED;
}

/* The tunables of the loaded policy. */
struct tunables {
	int map;
	struct btf *btf;
	const struct btf_type *type;
	char *data;
};

static void tunables_close(struct tunables *t)
{
	free(t->data);
	btf__free(t->btf);
	close(t->map);
}

/* Type of the value of a pinned map.  Return: 0 or a negative errno. */
static int pinned_type(int map, struct btf **btf, const struct btf_type **type,
		       size_t *size)
{
	struct bpf_map_info info = {};
	__u32 len = sizeof(info);

	if (bpf_map_get_info_by_fd(map, &info, &len))
		return -errno;
	*btf = info.btf_id ? btf__load_from_kernel_by_id(info.btf_id) : NULL;
	if (!*btf)
		return -ENOENT;
	*type = resolve(*btf, info.btf_value_type_id);
	*size = info.value_size;
	return *type ? 0 : -ENOENT;
}

static int tunables_open(struct tunables *t)
{
	__u32 zero = 0;
	size_t size;
	int err;

	memset(t, 0, sizeof(*t));
	t->map = pinned_map("tunables");
	if (t->map < 0)
		return -errno;
	err = pinned_type(t->map, &t->btf, &t->type, &size);
	if (!err && !btf_is_struct(t->type))
		err = -ENOENT;
	if (!err) {
		t->data = calloc(1, size);
		err = !t->data ? -ENOMEM :
		      bpf_map_lookup_elem(t->map, &zero, t->data);
	}
	if (err)
		tunables_close(t);
	return err;
}

/* All tunables by name; NULL if the policy in charge has none. */
cJSON *read_tunables(void)
{
	struct tunables t;
	cJSON *object;
	int i;

	if (tunables_open(&t))
		return NULL;
	object = cJSON_CreateObject();
	for (i = 0; i < btf_vlen(t.type); i++) {
		const struct btf_member *member = btf_members(t.type) + i;
		const struct btf_type *type = resolve(t.btf, member->type);

		if (btf_is_int(type) && type->size <= sizeof(__u64))
			cJSON_AddNumberToObject(object,
				btf__name_by_offset(t.btf, member->name_off),
				get_value(type, t.data +
					  btf_member_bit_offset(t.type, i) / 8));
	}
	tunables_close(&t);
	return object;
}

static bool has_variable(const char *pin, const char *name)
{
	const struct btf_var_secinfo *info;
	const struct btf_type *type;
	int fd = bpf_obj_get(pin), i;
	struct btf *btf = NULL;
	bool found = false;
	size_t size;

	if (fd < 0)
		return false;
	if (!pinned_type(fd, &btf, &type, &size) && btf_is_datasec(type)) {
		info = btf_var_secinfos(type);
		for (i = 0; i < btf_vlen(type) && !found; i++, info++)
			found = !strcmp(name, btf__name_by_offset(btf,
				btf__type_by_id(btf, info->type)->name_off));
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

static int fail_unknown(const struct tunables *t, const char *name)
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

static int set_tunable(struct tunables *t, const char *setting)
{
	const char *value;
	char name[128];
	size_t offset;
	__u32 id;
	int ret;

	ret = parse_setting(setting, name, sizeof(name), &value);
	if (ret)
		return ret;
	id = t->map >= 0 ? find_member(t->btf, t->type, name, &offset) : 0;
	if (!id)
		return fail_unknown(t, name);
	return set_number(resolve(t->btf, id), t->data + offset, name, value);
}

static int show_tunables(void)
{
	cJSON *list = read_tunables() ?: cJSON_CreateObject();
	const cJSON *item;

	add_knobs(list);
	if (options.json)
		return print_json(list);
	cJSON_ArrayForEach(item, list)
		printf("%-24s %.0f\n", item->string, item->valuedouble);
	cJSON_Delete(list);
	return KSMX_OK;
}

/* Opens the tunables, unless all settings are for the kernel. */
static int open_for(struct tunables *t, int nr_tunables, int nr_knobs)
{
	int err;

	t->map = -1;
	if (!nr_tunables && nr_knobs)
		return KSMX_OK;
	if (!pinned_dir() && errno == ENOENT)
		return fail(KSMX_WRONG_STATE,
			    "nothing is loaded: ksmx load POLICY --set NAME=NUMBER");
	err = tunables_open(t);
	if (err && err != -ENOENT)
		return fail(KSMX_FAILED, "cannot read the tunables: %s",
			    strerror(-err));
	if (err)
		t->map = -1;	/* no tunables, which set_tunable() tells */
	return KSMX_OK;
}

int cmd_set(int argc, char **argv)
{
	struct knob_setting *sets = calloc(argc + 1, sizeof(*sets));
	int i, ret, nr_knobs = 0;
	struct tunables t;
	__u32 zero = 0;

	if (!sets)
		return fail(KSMX_FAILED, "no memory");
	ret = check_pins();
	for (i = 0; i < argc && !ret; i++) {
		if (is_knob(argv[i]))
			ret = knob_parse(&sets[nr_knobs++], argv[i]);
	}
	ret = ret ?: open_for(&t, argc - nr_knobs, nr_knobs);
	if (ret)
		goto free_sets;

	for (i = 0; i < argc && !ret; i++) {
		if (!is_knob(argv[i]))
			ret = set_tunable(&t, argv[i]);
	}
	ret = ret ?: knobs_write(sets, nr_knobs);
	if (!ret && argc > nr_knobs &&
	    bpf_map_update_elem(t.map, &zero, t.data, BPF_ANY)) {
		ret = fail(KSMX_FAILED, "cannot change the tunables: %s",
			   strerror(errno));
		while (nr_knobs--)
			sysfs_write(sets[nr_knobs].knob->name,
				    sets[nr_knobs].before);
	}
	if (t.map >= 0)
		tunables_close(&t);
	ret = ret ?: show_tunables();
free_sets:
	free(sets);
	return ret;
}
