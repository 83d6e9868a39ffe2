// SPDX-License-Identifier: GPL-2.0
/*
 * Entries of the maps of a policy: structs of numbers, understood by their BTF.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <bpf/bpf.h>

#include "ksmx.h"

/* Type of the values of a map.  Return: 0 or a negative errno. */
int map_value_type(int map, struct bpf_map_info *info, struct btf **btf,
		   const struct btf_type **type)
{
	__u32 len = sizeof(*info);

	memset(info, 0, sizeof(*info));
	if (bpf_map_get_info_by_fd(map, info, &len))
		return -errno;
	*btf = info->btf_id ? btf__load_from_kernel_by_id(info->btf_id) : NULL;
	if (!*btf)
		return -ENOENT;
	*type = resolve(*btf, info->btf_value_type_id);
	return *type ? 0 : -ENOENT;
}

static bool is_plain(const struct bpf_map_info *info,
		     const struct btf_type *type)
{
	return (info->type == BPF_MAP_TYPE_ARRAY ||
		info->type == BPF_MAP_TYPE_HASH ||
		info->type == BPF_MAP_TYPE_LRU_HASH) &&
	       (info->key_size == sizeof(__u32) ||
		info->key_size == sizeof(__u64)) && btf_is_struct(type);
}

static int entry_read(struct entry *e, const char *map, __u64 key)
{
	struct bpf_map_info info;
	int err;

	err = map_value_type(e->map, &info, &e->btf, &e->type);
	if (err)
		return err;
	if (!is_plain(&info, e->type))
		return -EINVAL;
	if (info.key_size == sizeof(__u32) && key > UINT_MAX)
		return -ERANGE;
	e->data = calloc(2, info.value_size);
	e->name = strdup(map);
	if (!e->data || !e->name)
		return -ENOMEM;
	e->before = e->data + info.value_size;
	/* Little endian, so that this does for keys of 32 bits, too. */
	e->key = key;
	e->exists = !bpf_map_lookup_elem(e->map, &key, e->data);
	if (!e->exists && errno != ENOENT)
		return -errno;
	memcpy(e->before, e->data, info.value_size);
	return 0;
}

/*
 * Opens the entry with this key; its data is zero if there is none yet.  The map
 * is that of a policy which is loaded or, with NULL, of the one in charge.
 * Return: 0, -EINVAL for maps of another kind, or another negative errno.
 */
int entry_open(struct entry *e, const struct policy *policy, const char *map,
	       __u64 key)
{
	int err;

	memset(e, 0, sizeof(*e));
	e->map = policy ? policy_map(policy, map) : pinned_map(map);
	if (e->map < 0)
		return -errno;
	err = entry_read(e, map, key);
	if (err)
		entry_close(e);
	return err;
}

void entry_close(struct entry *e)
{
	free(e->name);
	free(e->data);
	btf__free(e->btf);
	close(e->map);
}

/* Return: 0 or a negative errno. */
int entry_write(const struct entry *e)
{
	return bpf_map_update_elem(e->map, &e->key, e->data, BPF_ANY) ? -errno :
									0;
}

/* Takes entry_write() back. */
void entry_restore(const struct entry *e)
{
	if (e->exists)
		bpf_map_update_elem(e->map, &e->key, e->before, BPF_ANY);
	else
		bpf_map_delete_elem(e->map, &e->key);
}

/* The numbers in the only entry of this map; NULL if the policy has none. */
cJSON *read_entry(const char *map)
{
	struct entry e;
	cJSON *object;
	int i;

	if (entry_open(&e, NULL, map, 0))
		return NULL;
	object = cJSON_CreateObject();
	for (i = 0; i < btf_vlen(e.type); i++) {
		const struct btf_member *member = btf_members(e.type) + i;
		const struct btf_type *type = resolve(e.btf, member->type);
		size_t offset = btf_member_bit_offset(e.type, i) / 8;

		if (btf_is_int(type) && type->size <= sizeof(__u64))
			cJSON_AddNumberToObject(object,
				btf__name_by_offset(e.btf, member->name_off),
				get_value(type, e.data + offset));
	}
	entry_close(&e);
	return object;
}

/* The flags of struct ksm_ext_ops, as the kernel has them in the map. */
static __u32 read_flags(int map, const struct bpf_map_info *info)
{
	const struct btf *btf = kernel_btf();
	const struct btf_type *type;
	size_t ops, offset;
	__u32 flags = 0, zero = 0, id;
	char *value;

	type = btf ? resolve(btf, info->btf_vmlinux_value_type_id) : NULL;
	id = type ? find_member(btf, type, "data", &ops) : 0;
	if (!id || !find_member(btf, resolve(btf, id), "flags", &offset))
		return 0;
	value = calloc(1, info->value_size);
	if (value && !bpf_map_lookup_elem(map, &zero, value))
		memcpy(&flags, value + ops + offset, sizeof(flags));
	free(value);
	return flags;
}

/* Does the policy in charge only tell what it would merge? */
bool is_dry_run(void)
{
	struct bpf_map_info info = {};
	__u32 len = sizeof(info), flags = 0;
	int map = pinned_ops();

	if (map < 0)
		return false;
	if (!bpf_map_get_info_by_fd(map, &info, &len))
		flags = read_flags(map, &info);
	close(map);
	return flags & enum_value("ksm_ext_ops_flags", "KSM_EXT_DRY_RUN");
}
