// SPDX-License-Identifier: GPL-2.0
/*
 * Policies as files: where they are, what is in them.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ksmx.h"

#define SUFFIX	".bpf.o"

/* The places where policies are looked for, in this order; "" for none. */
void policy_dirs(char dirs[NR_POLICY_DIRS][PATH_MAX])
{
	const char *env = getenv("KSMX_POLICY_DIR");
	char exe[PATH_MAX - sizeof("/lib/ksm_ext")], *slash;
	ssize_t n;

	snprintf(dirs[0], PATH_MAX, "%s", env ?: "");

	n = readlink("/proc/self/exe", exe, sizeof(exe) - 1);
	exe[n > 0 ? n : 0] = '\0';
	slash = strrchr(exe, '/');
	*(slash ?: exe) = '\0';
	snprintf(dirs[1], PATH_MAX, "%s", exe);

	/* Where "make install" puts them, whatever PREFIX is. */
	slash = strrchr(exe, '/');
	*(slash ?: exe) = '\0';
	snprintf(dirs[2], PATH_MAX, "%s/lib/ksm_ext", exe);
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

/* The constants of the object; their initial values may be changed. */
struct constants {
	const struct btf *btf;
	const struct btf_type *section;
	char *data;
	size_t size;
};

static bool find_constants(struct bpf_object *obj, struct constants *c)
{
	struct bpf_map *map;
	int id;

	c->btf = bpf_object__btf(obj);
	id = btf__find_by_name_kind(c->btf, ".rodata", BTF_KIND_DATASEC);
	if (id < 0)
		return false;
	c->section = btf__type_by_id(c->btf, id);

	bpf_object__for_each_map(map, obj) {
		const char *map_name = bpf_map__name(map);
		const char *dot = strchr(map_name, '.');

		if (dot && !strcmp(dot, ".rodata"))
			break;
	}
	c->data = map ? bpf_map__initial_value(map, &c->size) : NULL;
	return c->data;
}

/* Constant @i.  Return: its value, or NULL. */
static void *get_constant(const struct constants *c, int i, const char **name,
			  const struct btf_type **type)
{
	const struct btf_var_secinfo *info = btf_var_secinfos(c->section) + i;
	const struct btf_type *var = btf__type_by_id(c->btf, info->type);

	if ((size_t)info->offset + info->size > c->size)
		return NULL;
	*name = btf__name_by_offset(c->btf, var->name_off);
	*type = resolve(c->btf, var->type);
	return c->data + info->offset;
}

static void *find_constant(struct bpf_object *obj, const char *name,
			   const struct btf_type **type)
{
	struct constants c;
	const char *this;
	void *value;
	int i;

	if (!find_constants(obj, &c))
		return NULL;
	for (i = 0; i < btf_vlen(c.section); i++) {
		value = get_constant(&c, i, &this, type);
		if (value && !strcmp(this, name))
			return value;
	}
	return NULL;
}

/* Can a map of this type and name be made larger or smaller? */
static bool is_sizable(const struct bpf_map *map)
{
	return bpf_map__max_entries(map) > 1 && !strchr(bpf_map__name(map), '.') &&
	       bpf_map__type(map) != BPF_MAP_TYPE_STRUCT_OPS;
}

/* All that --set can set, with what it is if nobody does. */
cJSON *policy_tunables(const struct policy *policy)
{
	cJSON *object = cJSON_CreateObject();
	const struct btf_type *type;
	struct constants c;
	struct bpf_map *map;
	const char *name;
	char text[128];
	void *value;
	int i;

	for (i = 0; find_constants(policy->obj, &c) && i < btf_vlen(c.section);
	     i++) {
		value = get_constant(&c, i, &name, &type);
		if (value && btf_is_int(type) && type->size <= sizeof(__u64))
			cJSON_AddNumberToObject(object, name,
						get_value(type, value));
	}
	bpf_object__for_each_map(map, policy->obj) {
		snprintf(text, sizeof(text), "%s.max_entries",
			 bpf_map__name(map));
		if (is_sizable(map))
			cJSON_AddNumberToObject(object, text,
						bpf_map__max_entries(map));
	}
	return object;
}

/* The line that a policy says about itself: const char about[] = "..."; */
const char *policy_about(const struct policy *policy)
{
	const struct btf_type *type;
	const char *about;

	about = find_constant(policy->obj, "about", &type);
	if (!about || !btf_is_array(type) ||
	    !memchr(about, '\0', btf_array(type)->nelems))
		return "";
	return about;
}

/* Is it a tunable that only a running policy has? */
static bool is_tunable(const struct policy *policy, const char *name)
{
	const struct btf *btf = bpf_object__btf(policy->obj);
	const struct btf_type *type;
	struct bpf_map *map;
	size_t offset;

	map = bpf_object__find_map_by_name(policy->obj, "tunables");
	type = map ? resolve(btf, bpf_map__btf_value_type_id(map)) : NULL;
	return type && btf_is_struct(type) &&
	       find_member(btf, type, name, &offset);
}

static int set_max_entries(const struct policy *policy, char *name,
			   const char *text)
{
	struct bpf_map *map;
	__u32 value;
	char *end;

	errno = 0;
	value = strtoul(text, &end, 0);
	*strrchr(name, '.') = '\0';
	if (errno || *end || end == text || *text == '-' || !value ||
	    strtoul(text, NULL, 0) != value)
		return fail(KSMX_USAGE,
			    "--set %s.max_entries: '%s' is no number from 1 to 4294967295",
			    name, text);
	map = bpf_object__find_map_by_name(policy->obj, name);
	if (!map || bpf_map__set_max_entries(map, value))
		return fail(KSMX_USAGE,
			    "--set: no map '%s' to give %u entries to", name,
			    value);
	return KSMX_OK;
}

/* Obeys --set VARIABLE=NUMBER or --set MAP.max_entries=NUMBER. */
int policy_set(const struct policy *policy, const char *setting)
{
	const struct btf_type *type;
	const char *value;
	char name[128], *dot;
	void *data;
	int ret;

	ret = parse_setting(setting, name, sizeof(name), &value);
	if (ret)
		return ret;
	dot = strrchr(name, '.');
	if (dot && !strcmp(dot, ".max_entries"))
		return set_max_entries(policy, name, value);

	data = find_constant(policy->obj, name, &type);
	if (data)
		return set_number(type, data, name, value);
	if (is_tunable(policy, name))
		return fail(KSMX_USAGE,
			    "--set: %s can only be changed later: ksmx set %s",
			    name, setting);
	return fail(KSMX_USAGE,
		    "--set: no tunable '%s' in %s: ksm_ext-policies(7) lists them",
		    name, policy->path);
}

/* A map of a policy that is loaded.  Return: a descriptor, or -1. */
int policy_map(const struct policy *policy, const char *name)
{
	int fd = bpf_object__find_map_fd_by_name(policy->obj, name);

	if (fd < 0) {
		errno = -fd;
		return -1;
	}
	return fcntl(fd, F_DUPFD_CLOEXEC, 0);
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

static bool is_zero(const char *data, size_t size)
{
	while (size--) {
		if (*data++)
			return false;
	}
	return true;
}

static const char *kind_name(const struct btf_type *type)
{
	return btf_is_ptr(type) ? "pointer" : btf_is_int(type) ? "number" :
	       btf_is_array(type) ? "array" : "value";
}

/*
 * Member i of the ksm_ext_ops that the policy was built for: does this kernel
 * have it, and as it was?  Return: what is wrong, to be freed, or NULL.
 */
static char *misfit_member(const struct btf *btf, const struct btf_type *type,
			   int i, const char *data, const struct btf *kernel,
			   const struct btf_type *kernel_type)
{
	const struct btf_member *member = btf_members(type) + i;
	const char *name = btf__name_by_offset(btf, member->name_off);
	size_t offset = btf_member_bit_offset(type, i) / 8, kernel_offset;
	__s64 size = btf__resolve_size(btf, member->type), kernel_size;
	const struct btf_type *a, *b;
	char *why = NULL;
	__u32 id;

	if (size <= 0 || is_zero(data + offset, size))
		return NULL;		/* not used: may be missing */

	id = find_member(kernel, kernel_type, name, &kernel_offset);
	if (!id) {
		if (asprintf(&why, "this kernel's ksm_ext_ops has no member '%s'",
			     name) < 0)
			return NULL;
		return why;
	}
	a = resolve(btf, member->type);
	b = resolve(kernel, id);
	kernel_size = btf__resolve_size(kernel, id);
	if (btf_kind(a) == btf_kind(b) && size == kernel_size)
		return NULL;
	if (asprintf(&why,
		     "member '%s' of ksm_ext_ops is a %s of %lld bytes, in this kernel a %s of %lld",
		     name, kind_name(a), size, kind_name(b), kernel_size) < 0)
		return NULL;
	return why;
}

/*
 * Was the policy built for a ksm_ext_ops of another layout, in a way that
 * matters?  A member that it leaves alone does not, whoever lacks it.
 * Return: what is wrong, to be freed, or NULL if it fits.
 */
char *policy_misfit(const struct policy *policy, const struct btf *kernel)
{
	const struct btf *btf = bpf_object__btf(policy->obj);
	const struct btf_type *type, *kernel_type;
	const char *data;
	size_t size;
	char *why;
	int id, i;

	id = btf__find_by_name_kind(kernel, "ksm_ext_ops", BTF_KIND_STRUCT);
	data = bpf_map__initial_value(policy->ops, &size);
	type = btf__type_by_id(btf, bpf_map__btf_value_type_id(policy->ops));
	if (id < 0 || !data || type->size > size)
		return NULL;		/* for others to complain about */
	kernel_type = btf__type_by_id(kernel, id);

	for (i = 0; i < btf_vlen(type); i++) {
		why = misfit_member(btf, type, i, data, kernel, kernel_type);
		if (why)
			return why;
	}
	return NULL;
}
