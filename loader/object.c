// SPDX-License-Identifier: GPL-2.0
/*
 * Policies as files: where they are, what is in them.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <bpf/btf.h>

#include "ksmx.h"

#define SUFFIX	".bpf.o"

/* The places where policies are looked for, in this order; "" for none. */
void policy_dirs(char dirs[NR_POLICY_DIRS][PATH_MAX])
{
	const char *env = getenv("KSMX_POLICY_DIR");
	ssize_t n;
	char *slash;

	snprintf(dirs[0], PATH_MAX, "%s", env ?: "");

	n = readlink("/proc/self/exe", dirs[1], PATH_MAX - 1);
	dirs[1][n > 0 ? n : 0] = '\0';
	slash = strrchr(dirs[1], '/');
	if (slash)
		*slash = '\0';

	snprintf(dirs[2], PATH_MAX, "/usr/lib/ksm_ext");
}

/* A FILE has a slash or the suffix, anything else is the NAME of a policy. */
static int policy_path(const char *name, char *path)
{
	char dirs[NR_POLICY_DIRS][PATH_MAX];
	size_t len = strlen(name);
	int i;

	if (strchr(name, '/') || (len > strlen(SUFFIX) &&
	    !strcmp(name + len - strlen(SUFFIX), SUFFIX))) {
		snprintf(path, PATH_MAX, "%s", name);
		if (!access(path, R_OK))
			return KSMX_OK;
		return fail(KSMX_BAD_OBJECT, "cannot read %s: %s", name,
			    strerror(errno));
	}

	policy_dirs(dirs);
	for (i = 0; i < NR_POLICY_DIRS; i++) {
		if (!*dirs[i])
			continue;
		if (snprintf(path, PATH_MAX, "%s/%s" SUFFIX, dirs[i],
			     name) < PATH_MAX && !access(path, R_OK))
			return KSMX_OK;
	}
	return fail(KSMX_BAD_OBJECT,
		    "no policy '%s': see ksmx list, or give a path",
		    name);
}

/* The struct_ops map that is a policy; NULL if there is not exactly one. */
static struct bpf_map *find_ops(struct bpf_object *obj)
{
	const struct btf *btf = bpf_object__btf(obj);
	struct bpf_map *map, *ops = NULL;

	bpf_object__for_each_map(map, obj) {
		const struct btf_type *type;

		if (bpf_map__type(map) != BPF_MAP_TYPE_STRUCT_OPS)
			continue;
		type = btf__type_by_id(btf, bpf_map__btf_value_type_id(map));
		if (!type || strcmp(btf__name_by_offset(btf, type->name_off),
				    "ksm_ext_ops"))
			continue;
		/* The only flag of such a map is that it is for a link. */
		if (ops || !bpf_map__map_flags(map))
			return NULL;
		ops = map;
	}
	return ops;
}

/*
 * Opens the policy in policy->path; nothing of it reaches the kernel yet.
 * Return: 0, -ENOEXEC if it is no BPF object, -EINVAL if it is no policy.
 */
int policy_open_path(struct policy *policy)
{
	policy->obj = bpf_object__open_file(policy->path, NULL);
	if (!policy->obj)
		return -ENOEXEC;

	policy->ops = find_ops(policy->obj);
	if (policy->ops)
		return 0;
	bpf_object__close(policy->obj);
	return -EINVAL;
}

/* Opens the policy of this name or in this file, or reports what is wrong. */
int policy_open(const char *name, struct policy *policy)
{
	int ret;

	ret = policy_path(name, policy->path);
	if (ret)
		return ret;

	switch (policy_open_path(policy)) {
	case 0:
		return KSMX_OK;
	case -ENOEXEC:
		return fail(KSMX_BAD_OBJECT,
			    "%s is no BPF object: use clang -g -O2 -target bpf",
			    policy->path);
	default:
		return fail(KSMX_BAD_OBJECT,
			    "%s is no policy: one struct ksm_ext_ops in SEC(\".struct_ops.link\")",
			    policy->path);
	}
}

/* Finds a constant of the object; its initial value may be changed. */
static void *find_rodata(struct bpf_object *obj, const char *name,
			 const struct btf_type **typep)
{
	const struct btf *btf = bpf_object__btf(obj);
	const struct btf_var_secinfo *info;
	const struct btf_type *section;
	struct bpf_map *map;
	size_t size;
	char *data;
	int i, id;

	id = btf__find_by_name_kind(btf, ".rodata", BTF_KIND_DATASEC);
	if (id < 0)
		return NULL;
	section = btf__type_by_id(btf, id);

	bpf_object__for_each_map(map, obj) {
		const char *map_name = bpf_map__name(map);
		const char *dot = strchr(map_name, '.');

		if (dot && !strcmp(dot, ".rodata"))
			break;
	}
	data = map ? bpf_map__initial_value(map, &size) : NULL;
	if (!data)
		return NULL;

	info = btf_var_secinfos(section);
	for (i = 0; i < btf_vlen(section); i++, info++) {
		const struct btf_type *var = btf__type_by_id(btf, info->type);

		if (strcmp(btf__name_by_offset(btf, var->name_off), name))
			continue;
		if ((size_t)info->offset + info->size > size)
			return NULL;
		*typep = btf__type_by_id(btf, btf__resolve_type(btf,
								var->type));
		return data + info->offset;
	}
	return NULL;
}

/* The line that a policy says about itself: const char about[] = "..."; */
const char *policy_about(const struct policy *policy)
{
	const struct btf_type *type;
	const char *about;

	about = find_rodata(policy->obj, "about", &type);
	if (!about || !btf_is_array(type) ||
	    !memchr(about, '\0', btf_array(type)->nelems))
		return "";
	return about;
}

static bool fits(uint64_t value, unsigned int size)
{
	return size >= sizeof(value) || !(value >> (8 * size));
}

/*
 * Obeys --set VARIABLE=NUMBER or --set MAP.max_entries=NUMBER.  Tunables are
 * unsigned, that is all that policies have needed so far.
 */
int policy_set(const struct policy *policy, const char *setting)
{
	const struct btf_type *type;
	const char *equals = strchr(setting, '=');
	char name[128], *dot, *end;
	uint64_t value;
	void *data;

	if (!equals || equals == setting ||
	    (size_t)(equals - setting) >= sizeof(name))
		return fail(KSMX_USAGE, "--set takes NAME=NUMBER, not '%s'",
			    setting);
	memcpy(name, setting, equals - setting);
	name[equals - setting] = '\0';

	errno = 0;
	value = strtoull(equals + 1, &end, 0);
	if (errno || *end || end == equals + 1 || equals[1] == '-')
		return fail(KSMX_USAGE, "--set %s: '%s' is not a number",
			    name, equals + 1);

	dot = strchr(name, '.');
	if (dot && !strcmp(dot, ".max_entries")) {
		struct bpf_map *map;

		*dot = '\0';
		map = bpf_object__find_map_by_name(policy->obj, name);
		if (!map || !value || value > UINT32_MAX ||
		    bpf_map__set_max_entries(map, value))
			return fail(KSMX_USAGE,
				    "--set: no map '%s' to give %" PRIu64
				    " entries to", name, value);
		return KSMX_OK;
	}

	data = find_rodata(policy->obj, name, &type);
	if (!data || !btf_is_int(type) || type->size > sizeof(value))
		return fail(KSMX_USAGE,
			    "--set: no tunable '%s' in %s: docs/policies.md lists them",
			    name, policy->path);
	if (!fits(value, type->size))
		return fail(KSMX_USAGE, "--set %s: %" PRIu64 " is too big",
			    name, value);
	/* Little endian, as all machines that ksm_ext was built for. */
	memcpy(data, &value, type->size);
	return KSMX_OK;
}

/* The name that the kernel will know the policy by. */
const char *policy_name(const struct policy *policy)
{
	const struct btf *btf = bpf_object__btf(policy->obj);
	const struct btf_type *type;
	const struct btf_member *member;
	const char *data;
	size_t size;
	int i;

	data = bpf_map__initial_value(policy->ops, &size);
	type = btf__type_by_id(btf, bpf_map__btf_value_type_id(policy->ops));
	member = btf_members(type);
	for (i = 0; i < btf_vlen(type); i++, member++) {
		size_t offset = btf_member_bit_offset(type, i) / 8;

		if (strcmp(btf__name_by_offset(btf, member->name_off), "name"))
			continue;
		if (offset < size && memchr(data + offset, '\0', size - offset))
			return data + offset;
	}
	return "";
}
