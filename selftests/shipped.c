// SPDX-License-Identifier: GPL-2.0
/*
 * The policies in bpf/: does each merge what it promises, and nothing else?
 *
 * Each is loaded while "run" is 0, is given its tunables through its map, and
 * may then run.  What has to stay apart is looked at after the policy has
 * settled: two complete rounds after everything was there for it to see.
 */
#include <ctype.h>
#include <grp.h>
#include <sched.h>
#include <bpf/btf.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "ksm_ext_test.h"
#include "all.skel.h"
#include "ksm_ext_progress.h"

#define NPAGES	64		/* of most files */
#define SIZE	(NPAGES * PAGE)
#define HIT	5

#define CGROUPS	"/sys/fs/cgroup"

FIXTURE(shipped) {
	char dir[MAX_PATH];
	struct file a, b;	/* twins */
	struct file c, d;	/* twins of other contents */
	char one[MAX_PATH];	/* cgroups, for those who need them */
	char two[MAX_PATH];
	char below[MAX_PATH];	/* a child of one */
	struct bpf_object *obj;
	struct bpf_link *link;
};

static void cgroup_remove(struct __test_metadata *_metadata, const char *path)
{
	/* Its last process may be about to leave. */
	EXPECT_TRUE(!*path || WAIT_FOR(!rmdir(path))) {
		TH_LOG("%s: %s", path, strerror(errno));
	}
}

FIXTURE_SETUP(shipped)
{
	if (control)
		SKIP(return, "control run: no policies");
	test_begin(_metadata, self->dir);
	file_create(_metadata, &self->a, self->dir, "a", SIZE, 1);
	file_create(_metadata, &self->b, self->dir, "b", SIZE, 1);
	file_create(_metadata, &self->c, self->dir, "c", SIZE, 2);
	file_create(_metadata, &self->d, self->dir, "d", SIZE, 2);
	drain_lru();
}

FIXTURE_TEARDOWN(shipped)
{
	bpf_link__destroy(self->link);
	bpf_object__close(self->obj);
	EXPECT_EQ(0, write_text(KSM_EXT_SYSFS "run", "1"));
	check_file(&self->a);
	check_file(&self->b);
	check_file(&self->c);
	check_file(&self->d);
	file_close(&self->a);
	file_close(&self->b);
	file_close(&self->c);
	file_close(&self->d);
	cgroup_remove(_metadata, self->below);
	cgroup_remove(_metadata, self->one);
	cgroup_remove(_metadata, self->two);
	test_end(_metadata, self->dir);
}

/* ---- policies as objects ---- */

/* Put the policy of this name in charge; it does not run yet. */
static void load(struct __test_metadata *_metadata, FIXTURE_DATA(shipped) *self,
		 const char *name)
{
	char path[PATH_MAX], *slash;
	struct bpf_map *map;
	ssize_t n;

	/* build/NAME.bpf.o, seen from build/selftests/shipped */
	n = readlink("/proc/self/exe", path, sizeof(path) - 1);
	ASSERT_LT(0, n);
	path[n] = 0;
	slash = strrchr(path, '/');
	snprintf(slash, path + sizeof(path) - slash, "/../%s.bpf.o", name);

	ASSERT_EQ(0, write_text(KSM_EXT_SYSFS "run", "0"));
	self->obj = bpf_object__open_file(path, NULL);
	ASSERT_NE(NULL, self->obj) TH_LOG("%s: %s", path, strerror(errno));
	ASSERT_EQ(0, bpf_object__load(self->obj)) {
		TH_LOG("%s: %s", path, strerror(errno));
	}
	bpf_object__for_each_map(map, self->obj) {
		if (bpf_map__type(map) == BPF_MAP_TYPE_STRUCT_OPS)
			break;
	}
	ASSERT_NE(NULL, map);
	self->link = bpf_map__attach_struct_ops(map);
	ASSERT_NE(NULL, self->link) TH_LOG("%s: %s", name, strerror(errno));
}

static void let_run(struct __test_metadata *_metadata)
{
	ASSERT_EQ(0, write_text(KSM_EXT_SYSFS "run", "1"));
}

static struct bpf_map *map_of(struct __test_metadata *_metadata,
			      FIXTURE_DATA(shipped) *self, const char *name)
{
	struct bpf_map *map = bpf_object__find_map_by_name(self->obj, name);

	ASSERT_NE(NULL, map) TH_LOG("no map %s", name);
	return map;
}

/* A member of a structure that is a map's value; @bytes of it at @offset. */
static void find_member(struct __test_metadata *_metadata,
			FIXTURE_DATA(shipped) *self, struct bpf_map *map,
			const char *name, size_t *offset, size_t *bytes)
{
	const struct btf *btf = bpf_object__btf(self->obj);
	const struct btf_type *t =
		btf__type_by_id(btf, bpf_map__btf_value_type_id(map));
	const struct btf_member *m = btf_members(t);

	for (int i = 0; i < btf_vlen(t); i++, m++) {
		if (strcmp(btf__name_by_offset(btf, m->name_off), name))
			continue;
		*offset = btf_member_bit_offset(t, i) / 8;
		*bytes = btf__resolve_size(btf, m->type);
		return;
	}
	ASSERT_TRUE(false) TH_LOG("no member %s", name);
}

/* A number in an entry of a map, found by name; 0 if there is no such entry. */
static __u64 look_up(struct __test_metadata *_metadata,
		     FIXTURE_DATA(shipped) *self, const char *map_name,
		     const void *key, const char *member)
{
	struct bpf_map *map = map_of(_metadata, self, map_name);
	unsigned char value[256] = {};
	size_t offset, bytes;
	__u64 number = 0;

	ASSERT_GE(sizeof(value), bpf_map__value_size(map));
	find_member(_metadata, self, map, member, &offset, &bytes);
	bpf_map__lookup_elem(map, key, bpf_map__key_size(map), value,
			     bpf_map__value_size(map), 0);
	memcpy(&number, value + offset, bytes);
	return number;
}

static __u64 progress_of(struct __test_metadata *_metadata,
			 FIXTURE_DATA(shipped) *self, const char *member)
{
	__u32 zero = 0;

	return look_up(_metadata, self, "progress", &zero, member);
}

static void set_tunable(struct __test_metadata *_metadata,
			FIXTURE_DATA(shipped) *self, const char *name,
			__u32 number)
{
	struct bpf_map *map = map_of(_metadata, self, "tunables");
	size_t offset, bytes, size = bpf_map__value_size(map);
	unsigned char value[256];
	__u32 zero = 0;

	ASSERT_GE(sizeof(value), size);
	find_member(_metadata, self, map, name, &offset, &bytes);
	ASSERT_EQ(sizeof(number), bytes);
	ASSERT_EQ(0, bpf_map__lookup_elem(map, &zero, 4, value, size, 0));
	memcpy(value + offset, &number, bytes);
	ASSERT_EQ(0, bpf_map__update_elem(map, &zero, 4, value, size, 0));
}

/* Two rounds that began after now are over, and merged nothing new. */
static void settle(struct __test_metadata *_metadata,
		   FIXTURE_DATA(shipped) *self)
{
	__u64 first = progress_of(_metadata, self, "rounds");

	ASSERT_TRUE(WAIT_FOR(progress_of(_metadata, self, "rounds") >=
				first + 3 &&
			     progress_of(_metadata, self, "quiet") >= 2)) {
		TH_LOG("the policy does not settle");
	}
}

/* Load, with rounds that follow each other, and let it run. */
static void start(struct __test_metadata *_metadata,
		  FIXTURE_DATA(shipped) *self, const char *name)
{
	load(_metadata, self, name);
	set_tunable(_metadata, self, "idle_ms", 20);
	let_run(_metadata);
}

static size_t nr_shared(struct __test_metadata *_metadata,
			const struct file *f, const struct file *g,
			size_t first, size_t end)
{
	size_t nr = 0;

	for (size_t i = first; i < end; i++)
		nr += same_page(_metadata, f, i, g, i);
	return nr;
}

static void __expect_twins(struct __test_metadata *_metadata,
			   const struct file *f, const struct file *g,
			   size_t first, size_t end, bool shared, int line)
{
	EXPECT_EQ(shared ? end - first : 0,
		  nr_shared(_metadata, f, g, first, end)) {
		TH_LOG("line %d: pages of %s and %s that are %s", line,
		       strrchr(f->path, '/') + 1, strrchr(g->path, '/') + 1,
		       shared ? "apart" : "shared");
	}
}

#define expect_shared(f, g, first, end) \
	__expect_twins(_metadata, f, g, first, end, true, __LINE__)
#define expect_apart(f, g, first, end) \
	__expect_twins(_metadata, f, g, first, end, false, __LINE__)

static bool merged_so_far(struct __test_metadata *_metadata, long aliases)
{
	return counter(_metadata, "aliases") >= aliases;
}

static long saved(struct __test_metadata *_metadata)
{
	return counter(_metadata, "pages_sharing");
}

/* ---- all of them ---- */

/* Constants are where the map begins; afterwards the map counts. */
TEST_F(shipped, tunables)
{
	struct all *all = all__open();
	__u32 zero = 0;

	ASSERT_NE(NULL, all);
	all->rodata->idle_ms = 20;
	all->rodata->slice_pages = 77;
	ASSERT_EQ(0, all__load(all));
	self->link = bpf_map__attach_struct_ops(all->maps.all_ops);
	ASSERT_NE(NULL, self->link) TH_LOG("%s", strerror(errno));
	self->obj = all->obj;
	EXPECT_EQ(77, look_up(_metadata, self, "tunables", &zero,
			      "slice_pages"));
	EXPECT_EQ(20, look_up(_metadata, self, "tunables", &zero, "idle_ms"));
	EXPECT_TRUE(WAIT_FOR(merged_so_far(_metadata, 4 * NPAGES)));
	check_totals(4 * NPAGES);
	self->obj = NULL;
	bpf_link__destroy(self->link);
	self->link = NULL;
	all__destroy(all);
}

/* Mount @dir at @at with ids of the disk that are others' in the system. */
static void mount_with_ids(struct __test_metadata *_metadata, const char *dir,
			   const char *at)
{
	struct mount_attr attr = { .attr_set = MOUNT_ATTR_IDMAP };
	int sync[2], tree;
	char path[64];
	pid_t pid;

	ASSERT_EQ(0, pipe(sync));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		close(sync[0]);
		if (unshare(CLONE_NEWUSER) || write(sync[1], "", 1) != 1)
			_exit(1);
		pause();
		_exit(0);
	}
	close(sync[1]);
	ASSERT_EQ(1, read(sync[0], path, 1)) TH_LOG("no user namespace");
	for (int i = 0; i < 2; i++) {
		snprintf(path, sizeof(path), "/proc/%d/%s", pid,
			 i ? "gid_map" : "uid_map");
		ASSERT_EQ(0, write_text(path, "0 100000 1000"));
	}
	snprintf(path, sizeof(path), "/proc/%d/ns/user", pid);
	attr.userns_fd = open(path, O_RDONLY);
	ASSERT_LE(0, (int)attr.userns_fd);
	tree = syscall(SYS_open_tree, -1, dir, OPEN_TREE_CLONE);
	ASSERT_LE(0, tree) TH_LOG("%s", strerror(errno));
	ASSERT_EQ(0, syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH, &attr,
			     sizeof(attr))) {
		TH_LOG("mount_setattr: %s", strerror(errno));
	}
	ASSERT_EQ(0, mkdir(at, 0755));
	ASSERT_EQ(0, syscall(SYS_move_mount, tree, "", -1, at,
			     MOVE_MOUNT_F_EMPTY_PATH));
	close(tree);
	close(attr.userns_fd);
	close(sync[0]);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

/*
 * Who owns a file on disk is not who made it, if a file system is mounted with
 * other ids somewhere: then only what all may read is merged.
 */
TEST_F(shipped, idmapped)
{
	char mnt[MAX_PATH], at[MAX_PATH], image[MAX_PATH + 4];
	struct file sub[4];

	ASSERT_EQ(0, mkdir(strcat(strcpy(at, self->dir), "/fs"), 0755));
	mount_new(_metadata, at, mnt, mkfs_like(self->dir), "");
	/* All could write it, so it is in no domain and leaves them alone. */
	ASSERT_EQ(0, chmod(strcat(strcpy(image, mnt), ".img"), 0666));
	for (int i = 0; i < 4; i++) {
		char name[] = { 'e' + i, 0 };

		file_create(_metadata, &sub[i], mnt, name, SIZE, 3 + i / 2);
		ASSERT_EQ(0, fchmod(sub[i].fd, i < 2 ? 0600 : 0644));
	}
	drain_lru();
	start(_metadata, self, "all");
	EXPECT_TRUE(WAIT_FOR(merged_so_far(_metadata, 8 * NPAGES)));
	expect_shared(&sub[0], &sub[1], 0, NPAGES);
	expect_shared(&sub[2], &sub[3], 0, NPAGES);

	strcat(at, "/ids");
	mount_with_ids(_metadata, mnt, at);
	ASSERT_EQ(0, umount(at));
	/* For those who are apart again it counts that there was one. */
	ASSERT_EQ(0, write_text(KSM_EXT_SYSFS "run", "2"));
	check_totals(0);
	for (int i = 0; i < 4; i++) {
		drop_file(_metadata, &sub[i]);
		read_to_cache(_metadata, &sub[i]);
	}
	drain_lru();
	let_run(_metadata);
	EXPECT_TRUE(WAIT_FOR(nr_shared(_metadata, &sub[2], &sub[3], 0,
				       NPAGES) == NPAGES));
	settle(_metadata, self);
	expect_apart(&sub[0], &sub[1], 0, NPAGES);
	for (int i = 0; i < 4; i++) {
		check_file(&sub[i]);
		file_close(&sub[i]);
	}
	ASSERT_EQ(0, umount(mnt));
}

/* A file of the third contents in copy number @i of a tree */
static void create_in_copy(struct __test_metadata *_metadata,
			   FIXTURE_DATA(shipped) *self, int i, struct file *f,
			   const char *name, size_t size)
{
	char dir[MAX_PATH];

	ASSERT_GT(MAX_PATH, snprintf(dir, MAX_PATH, "%s/%d", self->dir, i));
	ASSERT_TRUE(!mkdir(dir, 0755) || errno == EEXIST);
	file_create(_metadata, f, dir, name, size, 3);
	drain_lru();
}

/* Read pages again from the disk that are not shared: they are new, too. */
static bool read_the_rest(struct __test_metadata *_metadata, struct file *f)
{
	char byte;

	for (size_t i = 0; i < NPAGES; i++) {
		if (same_page(_metadata, &f[0], i, &f[1], i))
			continue;
		for (int j = 0; j < 2; j++) {
			ASSERT_EQ(0, posix_fadvise(f[j].fd, i * PAGE, PAGE,
						   POSIX_FADV_DONTNEED));
			ASSERT_EQ(1, pread(f[j].fd, &byte, 1, i * PAGE));
			drain_lru();
		}
	}
	return true;
}

/* What was just read is looked at between rounds, not in the next. */
static void fresh(struct __test_metadata *_metadata,
		  FIXTURE_DATA(shipped) *self, const char *name)
{
	struct file sub[2];
	long slices, before;
	__u64 rounds;

	start(_metadata, self, name);
	settle(_metadata, self);
	check_totals(name[0] == 'a' ? 4 * NPAGES : 0);
	for (int i = 0; i < 2; i++) {
		create_in_copy(_metadata, self, i, &sub[i], "fresh", SIZE);
		drop_file(_metadata, &sub[i]);
		ASSERT_EQ(0, resident(_metadata, &sub[i]));
	}
	/* A round that is under way ends, and no other follows for an hour. */
	ASSERT_EQ(0, write_text(KSM_EXT_SYSFS "run", "0"));
	set_tunable(_metadata, self, "idle_ms", 3600 * 1000);
	slices = counter(_metadata, "slices");
	let_run(_metadata);
	ASSERT_TRUE(WAIT_FOR(counter(_metadata, "slices") > slices));
	rounds = progress_of(_metadata, self, "rounds");
	before = saved(_metadata);

	for (int i = 0; i < 2; i++) {
		read_to_cache(_metadata, &sub[i]);
		drain_lru();
	}
	/* What was busy on its way to the LRU lists would be left to the round. */
	EXPECT_TRUE(WAIT_FOR(read_the_rest(_metadata, sub) &&
			     saved(_metadata) >= before + NPAGES - 1));
	EXPECT_EQ(rounds, progress_of(_metadata, self, "rounds"));
	for (int i = 0; i < 2; i++)
		file_close(&sub[i]);
}

TEST_F(shipped, all_fresh)
{
	fresh(_metadata, self, "all");
}

TEST_F(shipped, samefile_fresh)
{
	fresh(_metadata, self, "samefile");
}

/* The one that docs/tutorial.md teaches to write */
TEST_F(shipped, tutorial)
{
	load(_metadata, self, "tutorial/twins");
	let_run(_metadata);
	/* All four have the same size, it pairs three of them with one. */
	EXPECT_TRUE(WAIT_FOR(merged_so_far(_metadata, 2 * NPAGES)));
	if (same_page(_metadata, &self->a, 0, &self->b, 0)) {
		expect_shared(&self->a, &self->b, 0, NPAGES);
		expect_apart(&self->c, &self->d, 0, NPAGES);
	} else {
		expect_shared(&self->c, &self->d, 0, NPAGES);
		expect_apart(&self->a, &self->b, 0, NPAGES);
	}
	expect_apart(&self->a, &self->c, 0, NPAGES);
	check_totals(2 * NPAGES);
}

/* ---- samefile ---- */

/* Other bytes on these pages */
static void make_differ(struct __test_metadata *_metadata, struct file *f,
			size_t first, size_t end)
{
	for (size_t i = first; i < end; i++) {
		unsigned char other = ~f->want[i * PAGE];

		ASSERT_EQ(1, pwrite(f->fd, &other, 1, i * PAGE));
		model_write(_metadata, f, i * PAGE, &other, 1);
	}
	ASSERT_EQ(0, fsync(f->fd));
}

/* The same bytes under another name, or in a longer file, are left alone. */
TEST_F(shipped, samefile_names_and_sizes)
{
	struct file twins[2], longer, renamed;

	for (int i = 0; i < 2; i++)
		create_in_copy(_metadata, self, i, &twins[i], "same", SIZE);
	create_in_copy(_metadata, self, 2, &longer, "same", SIZE + PAGE);
	create_in_copy(_metadata, self, 2, &renamed, "other", SIZE);
	start(_metadata, self, "samefile");
	EXPECT_TRUE(WAIT_FOR(merged_so_far(_metadata, 2 * NPAGES)));
	settle(_metadata, self);
	expect_shared(&twins[0], &twins[1], 0, NPAGES);
	expect_apart(&twins[0], &longer, 0, NPAGES);
	expect_apart(&twins[0], &renamed, 0, NPAGES);
	check_totals(2 * NPAGES);
	for (int i = 0; i < 2; i++)
		file_close(&twins[i]);
	file_close(&longer);
	file_close(&renamed);
}

/*
 * It goes on behind pages that differ, with longer and longer steps, and back
 * from where it finds equal ones again.  What lies within a step is missed.
 */
TEST_F(shipped, samefile_differences)
{
	const size_t gap = 8, islet = 17, islet_end = 20, gap_end = 26;
	struct file twins[2];

	for (int i = 0; i < 2; i++)
		create_in_copy(_metadata, self, i, &twins[i], "same", SIZE);
	make_differ(_metadata, &twins[1], 1, 2);
	make_differ(_metadata, &twins[1], gap, islet);
	make_differ(_metadata, &twins[1], islet_end, gap_end);
	drain_lru();
	load(_metadata, self, "samefile");
	set_tunable(_metadata, self, "idle_ms", 20);
	set_tunable(_metadata, self, "max_skip", 16);
	let_run(_metadata);
	EXPECT_TRUE(WAIT_FOR(merged_so_far(_metadata, 2 * (NPAGES - 1 -
						(gap_end - gap)))));
	settle(_metadata, self);
	expect_shared(&twins[0], &twins[1], 0, 1);
	expect_apart(&twins[0], &twins[1], 1, 2);
	expect_shared(&twins[0], &twins[1], 2, gap);
	expect_apart(&twins[0], &twins[1], gap, gap_end);
	expect_shared(&twins[0], &twins[1], gap_end, NPAGES);

	/* Step by step it misses nothing; a new time makes it look again. */
	set_tunable(_metadata, self, "max_skip", 1);
	ASSERT_EQ(0, futimens(twins[1].fd, NULL));
	EXPECT_TRUE(WAIT_FOR(merged_so_far(_metadata, 2 * (NPAGES - 1 -
						(islet - gap) -
						(gap_end - islet_end)))));
	settle(_metadata, self);
	expect_apart(&twins[0], &twins[1], gap, islet);
	expect_shared(&twins[0], &twins[1], islet, islet_end);
	expect_apart(&twins[0], &twins[1], islet_end, gap_end);
	for (int i = 0; i < 2; i++) {
		check_file(&twins[i]);
		file_close(&twins[i]);
	}
}

/* Whichever of three leaves memory, the two that stay are merged. */
TEST_F(shipped, samefile_partner_gone)
{
	struct file twins[3];

	for (int gone = 0; gone < 2; gone++) {
		for (int i = 0; i < 2; i++) {
			create_in_copy(_metadata, self, i, &twins[i], "same",
				       SIZE);
		}
		start(_metadata, self, "samefile");
		EXPECT_TRUE(WAIT_FOR(merged_so_far(_metadata, 2 * NPAGES)));
		settle(_metadata, self);
		expect_shared(&twins[0], &twins[1], 0, NPAGES);

		ASSERT_EQ(0, unlink(twins[gone].path));
		file_close(&twins[gone]);
		EXPECT_TRUE(WAIT_FOR(counter(_metadata, "aliases") == NPAGES));
		create_in_copy(_metadata, self, 2, &twins[2], "same", SIZE);
		EXPECT_TRUE(WAIT_FOR(merged_so_far(_metadata, 2 * NPAGES)));
		settle(_metadata, self);
		expect_shared(&twins[!gone], &twins[2], 0, NPAGES);
		check_totals(2 * NPAGES);

		bpf_link__destroy(self->link);
		bpf_object__close(self->obj);
		self->link = NULL;
		self->obj = NULL;
		check_file(&twins[2]);
		ASSERT_EQ(0, unlink(twins[!gone].path));
		ASSERT_EQ(0, unlink(twins[2].path));
		file_close(&twins[!gone]);
		file_close(&twins[2]);
		EXPECT_TRUE(WAIT_FOR(counter(_metadata, "aliases") == 0));
	}
}

/* ---- exec ---- */

TEST_F(shipped, exec)
{
	void *run[2], *data[2];

	run[0] = file_map(_metadata, &self->a, PROT_READ | PROT_EXEC,
			  MAP_PRIVATE);
	run[1] = file_map(_metadata, &self->b, PROT_READ | PROT_EXEC,
			  MAP_PRIVATE);
	data[0] = file_map(_metadata, &self->c, PROT_READ, MAP_SHARED);
	start(_metadata, self, "exec");
	EXPECT_TRUE(WAIT_FOR(merged_so_far(_metadata, 2 * NPAGES)));
	settle(_metadata, self);
	expect_shared(&self->a, &self->b, 0, NPAGES);
	expect_apart(&self->c, &self->d, 0, NPAGES);
	check_totals(2 * NPAGES);

	/* Data of one file, text of the other: still not both are run. */
	data[1] = file_map(_metadata, &self->d, PROT_READ | PROT_EXEC,
			   MAP_PRIVATE);
	settle(_metadata, self);
	expect_apart(&self->c, &self->d, 0, NPAGES);

	file_unmap(&self->c, data[0]);
	data[0] = file_map(_metadata, &self->c, PROT_READ | PROT_EXEC,
			   MAP_PRIVATE);
	EXPECT_TRUE(WAIT_FOR(merged_so_far(_metadata, 4 * NPAGES)));
	expect_shared(&self->c, &self->d, 0, NPAGES);
	file_unmap(&self->a, run[0]);
	file_unmap(&self->b, run[1]);
	file_unmap(&self->c, data[0]);
	file_unmap(&self->d, data[1]);
}

/* ---- cgroups ---- */

/* Make a child of that cgroup, which charges it for memory apart. */
static void cgroup_make(struct __test_metadata *_metadata, const char *parent,
			const char *name, char *path)
{
	char control_file[MAX_PATH];

	ASSERT_GT(MAX_PATH, snprintf(control_file, MAX_PATH,
				     "%s/cgroup.subtree_control", parent));
	ASSERT_TRUE(WAIT_FOR(!write_text(control_file, "+memory")));
	ASSERT_GT(MAX_PATH, snprintf(path, MAX_PATH, "%s/%s", parent, name));
	ASSERT_EQ(0, mkdir(path, 0755)) TH_LOG("%s: %s", path, strerror(errno));
}

static __u64 cgroup_id(struct __test_metadata *_metadata, const char *path)
{
	struct stat st;

	ASSERT_EQ(0, stat(path, &st));
	return st.st_ino;
}

static void cgroup_enter(struct __test_metadata *_metadata, const char *path)
{
	char procs[MAX_PATH];

	ASSERT_GT(MAX_PATH, snprintf(procs, MAX_PATH, "%s/cgroup.procs", path));
	ASSERT_EQ(0, write_text(procs, "0"));
}

/* A process of the cgroup reads pages, and so is charged with new ones. */
static void read_pages_in_cgroup(struct __test_metadata *_metadata,
				 const char *path, struct file *f, size_t nr)
{
	char buf[PAGE];
	pid_t pid;

	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		cgroup_enter(_metadata, path);
		for (size_t i = 0; i < nr; i++) {
			ASSERT_LT(0, pread(f->fd, buf, PAGE, i * PAGE));
		}
		drain_lru();
		_exit(0);
	}
	reap(_metadata, pid);
}

static void read_in_cgroup(struct __test_metadata *_metadata, const char *path,
			   struct file *f)
{
	drop_file(_metadata, f);
	ASSERT_EQ(0, resident(_metadata, f));
	read_pages_in_cgroup(_metadata, path, f, nr_pages(f));
}

static void make_cgroups(struct __test_metadata *_metadata,
			 FIXTURE_DATA(shipped) *self)
{
	cgroup_make(_metadata, CGROUPS, "ksm_ext_one", self->one);
	cgroup_make(_metadata, CGROUPS, "ksm_ext_two", self->two);
}

/* From here on no process may enter the one above it. */
static void make_below(struct __test_metadata *_metadata,
		       FIXTURE_DATA(shipped) *self)
{
	cgroup_make(_metadata, self->one, "below", self->below);
}

/* Seven twins: who shares with whom? */
TEST_F(shipped, cgroup_domains)
{
	struct file twins[5];

	for (int i = 0; i < 5; i++) {
		char name[] = { 't', 'w', 'i', 'n', '0' + i, 0 };

		file_create(_metadata, &twins[i], self->dir, name, SIZE, 1);
	}
	make_cgroups(_metadata, self);
	read_in_cgroup(_metadata, self->one, &self->a);
	read_in_cgroup(_metadata, self->one, &self->b);
	read_in_cgroup(_metadata, self->two, &twins[1]);
	read_in_cgroup(_metadata, self->two, &twins[2]);
	/* The owner rule holds all the same. */
	ASSERT_EQ(0, fchown(twins[3].fd, 1000, 1000));
	read_in_cgroup(_metadata, self->one, &twins[3]);
	ASSERT_EQ(0, fchmod(twins[4].fd, 0664));
	read_in_cgroup(_metadata, self->one, &twins[4]);
	make_below(_metadata, self);
	read_in_cgroup(_metadata, self->below, &twins[0]);

	load(_metadata, self, "cgroup");
	set_tunable(_metadata, self, "idle_ms", 20);
	set_tunable(_metadata, self, "level", 1);
	let_run(_metadata);
	/* c and d were written, and so read, by a cgroup of their own. */
	EXPECT_TRUE(WAIT_FOR(merged_so_far(_metadata, 7 * NPAGES)));
	settle(_metadata, self);
	expect_shared(&self->a, &self->b, 0, NPAGES);
	expect_shared(&self->a, &twins[0], 0, NPAGES);
	expect_shared(&twins[1], &twins[2], 0, NPAGES);
	expect_shared(&self->c, &self->d, 0, NPAGES);
	expect_apart(&self->a, &twins[1], 0, NPAGES);
	expect_apart(&self->a, &twins[3], 0, NPAGES);
	expect_apart(&self->a, &twins[4], 0, NPAGES);
	check_totals(7 * NPAGES);
	for (int i = 0; i < 5; i++)
		file_close(&twins[i]);
}

/* One level further down, the child is a container of its own. */
TEST_F(shipped, cgroup_level)
{
	make_cgroups(_metadata, self);
	read_in_cgroup(_metadata, self->one, &self->a);
	make_below(_metadata, self);
	read_in_cgroup(_metadata, self->below, &self->b);
	read_in_cgroup(_metadata, self->below, &self->c);
	read_in_cgroup(_metadata, self->below, &self->d);

	load(_metadata, self, "cgroup");
	set_tunable(_metadata, self, "idle_ms", 20);
	set_tunable(_metadata, self, "level", 2);
	let_run(_metadata);
	EXPECT_TRUE(WAIT_FOR(merged_so_far(_metadata, 2 * NPAGES)));
	settle(_metadata, self);
	expect_shared(&self->c, &self->d, 0, NPAGES);
	expect_apart(&self->a, &self->b, 0, NPAGES);
	check_totals(2 * NPAGES);
}

/* Who shares a page with others is not in their cgroup for that. */
TEST_F(shipped, cgroup_of_aliases)
{
	struct file *twins[] = { &self->a, &self->b };
	const char *paths[] = { self->one, self->two };

	make_cgroups(_metadata, self);
	for (int i = 0; i < 2; i++) {
		/* Read-ahead would take all of it. */
		ASSERT_EQ(0, posix_fadvise(twins[i]->fd, 0, 0,
					   POSIX_FADV_RANDOM));
		drop_file(_metadata, twins[i]);
		read_pages_in_cgroup(_metadata, paths[i], twins[i], 1);
		ASSERT_EQ(1, resident(_metadata, twins[i]));
	}
	start(_metadata, self, "all");
	EXPECT_TRUE(WAIT_FOR(merged_so_far(_metadata, 2 * NPAGES + 2)));
	expect_shared(&self->a, &self->b, 0, 1);
	bpf_link__destroy(self->link);
	bpf_object__close(self->obj);

	for (int i = 0; i < 2; i++)
		read_pages_in_cgroup(_metadata, paths[i], twins[i], NPAGES);
	load(_metadata, self, "cgroup");
	set_tunable(_metadata, self, "idle_ms", 20);
	set_tunable(_metadata, self, "level", 1);
	let_run(_metadata);
	settle(_metadata, self);
	expect_apart(&self->a, &self->b, 1, NPAGES);
	expect_shared(&self->c, &self->d, 0, NPAGES);
}

/* Budgets of merged pages: one for all, another for one of them. */
TEST_F(shipped, cgroup_max_merged)
{
	struct { __u64 max_merged, max_work; } own = { .max_merged = 30 };
	__u64 one, two;

	make_cgroups(_metadata, self);
	read_in_cgroup(_metadata, self->one, &self->a);
	read_in_cgroup(_metadata, self->one, &self->b);
	read_in_cgroup(_metadata, self->two, &self->c);
	read_in_cgroup(_metadata, self->two, &self->d);
	one = cgroup_id(_metadata, self->one);
	two = cgroup_id(_metadata, self->two);

	load(_metadata, self, "cgroup");
	set_tunable(_metadata, self, "idle_ms", 20);
	set_tunable(_metadata, self, "level", 1);
	set_tunable(_metadata, self, "max_merged", 10);
	ASSERT_EQ(0, bpf_map__update_elem(map_of(_metadata, self, "budgets"),
					  &two, sizeof(two), &own, sizeof(own),
					  BPF_ANY));
	let_run(_metadata);
	EXPECT_TRUE(WAIT_FOR(saved(_metadata) >= 40));
	settle(_metadata, self);
	EXPECT_EQ(40, saved(_metadata));
	EXPECT_EQ(10, look_up(_metadata, self, "usage", &one, "merged"));
	EXPECT_EQ(30, look_up(_metadata, self, "usage", &two, "merged"));

	/* Its tunables may change while it runs. */
	set_tunable(_metadata, self, "max_merged", 20);
	EXPECT_TRUE(WAIT_FOR(saved(_metadata) >= 50));
	settle(_metadata, self);
	EXPECT_EQ(50, saved(_metadata));
	set_tunable(_metadata, self, "max_merged", 0);
	EXPECT_TRUE(WAIT_FOR(saved(_metadata) >= NPAGES + 30));
	settle(_metadata, self);
	EXPECT_EQ(NPAGES + 30, saved(_metadata));
}

/* A budget of work is never exceeded, and yet all gets done in the end. */
TEST_F(shipped, cgroup_max_work)
{
	__u64 one, work, second, begin, most = 0;

	make_cgroups(_metadata, self);
	read_in_cgroup(_metadata, self->one, &self->a);
	read_in_cgroup(_metadata, self->one, &self->b);
	one = cgroup_id(_metadata, self->one);

	load(_metadata, self, "cgroup");
	set_tunable(_metadata, self, "idle_ms", 20);
	set_tunable(_metadata, self, "level", 1);
	set_tunable(_metadata, self, "max_work", NPAGES + 1);
	let_run(_metadata);
	EXPECT_TRUE(WAIT_FOR(look_up(_metadata, self, "usage", &one, "work")));
	begin = look_up(_metadata, self, "usage", &one, "second_ns");
	while (!same_page(_metadata, &self->a, 0, &self->b, 0)) {
		work = look_up(_metadata, self, "usage", &one, "work");
		most = MAX(most, work);
		usleep(1000);
	}
	/* One file fits into a second, two do not. */
	EXPECT_EQ(NPAGES, most);
	second = look_up(_metadata, self, "usage", &one, "second_ns");
	EXPECT_LE(begin + 1000000000, second);
}

/* ---- adaptive ---- */

/* Write the bytes that are there, which breaks but does not change. */
static void rewrite(struct __test_metadata *_metadata, struct file *f,
		    size_t page)
{
	ASSERT_EQ(PAGE, pwrite(f->fd, f->want + page * PAGE, PAGE,
			       page * PAGE));
	ASSERT_EQ(0, fsync(f->fd));
}

/* What was written once is left alone, with what is around it; the rest not. */
TEST_F(shipped, adaptive)
{
	struct file big[2];
	long breaks;

	for (int i = 0; i < 2; i++)
		file_create(_metadata, &big[i], self->dir, i ? "big1" : "big0",
			    3 * SIZE, 3);
	drain_lru();
	load(_metadata, self, "adaptive");
	set_tunable(_metadata, self, "idle_ms", 20);
	set_tunable(_metadata, self, "cool_ms", 3600 * 1000);
	set_tunable(_metadata, self, "max_cool_ms", 3600 * 1000);
	let_run(_metadata);
	EXPECT_TRUE(WAIT_FOR(merged_so_far(_metadata, 10 * NPAGES)));
	settle(_metadata, self);
	check_totals(10 * NPAGES);

	breaks = counter(_metadata, "break/write");
	rewrite(_metadata, &big[0], NPAGES + HIT);
	EXPECT_COUNTER("break/write", breaks + 1);
	settle(_metadata, self);
	expect_shared(&big[0], &big[1], 0, NPAGES + HIT);
	expect_apart(&big[0], &big[1], NPAGES + HIT, NPAGES + HIT + 1);
	expect_shared(&big[0], &big[1], NPAGES + HIT + 1, 3 * NPAGES);

	/* When all is to be merged again, the range that was written is not. */
	ASSERT_EQ(0, write_text(KSM_EXT_SYSFS "run", "2"));
	check_totals(0);
	drain_lru();
	let_run(_metadata);
	EXPECT_TRUE(WAIT_FOR(merged_so_far(_metadata, 8 * NPAGES)));
	settle(_metadata, self);
	expect_shared(&self->a, &self->b, 0, NPAGES);
	expect_shared(&big[0], &big[1], 0, NPAGES);
	expect_apart(&big[0], &big[1], NPAGES, 2 * NPAGES);
	expect_shared(&big[0], &big[1], 2 * NPAGES, 3 * NPAGES);
	check_totals(8 * NPAGES);
	for (int i = 0; i < 2; i++)
		file_close(&big[i]);
}

/* Written over and over, a file is merged less and less often. */
TEST_F(shipped, adaptive_over_and_over)
{
	long all, adaptive;

	for (int round = 0; round < 2; round++) {
		long begin, *breaks = round ? &adaptive : &all;

		start(_metadata, self, round ? "adaptive" : "all");
		EXPECT_TRUE(WAIT_FOR(merged_so_far(_metadata, 4 * NPAGES)));
		begin = counter(_metadata, "break/write");
		for (int i = 0; i < 30; i++) {
			__u64 rounds = progress_of(_metadata, self, "rounds");

			for (size_t page = 0; page < NPAGES; page++)
				rewrite(_metadata, &self->a, page);
			ASSERT_TRUE(WAIT_FOR(progress_of(_metadata, self,
							 "rounds") >=
					     rounds + 3));
		}
		*breaks = counter(_metadata, "break/write") - begin;
		expect_shared(&self->c, &self->d, 0, NPAGES);
		bpf_link__destroy(self->link);
		bpf_object__close(self->obj);
		self->link = NULL;
		self->obj = NULL;
	}
	TH_LOG("breaks: all %ld, adaptive %ld", all, adaptive);
	EXPECT_LE(NPAGES, adaptive);
	EXPECT_GT(all / 4, adaptive);
}

/* A file that is written no more is merged again, after its time. */
TEST_F(shipped, adaptive_forgives)
{
	load(_metadata, self, "adaptive");
	set_tunable(_metadata, self, "idle_ms", 20);
	set_tunable(_metadata, self, "cool_ms", 300);
	let_run(_metadata);
	EXPECT_TRUE(WAIT_FOR(merged_so_far(_metadata, 4 * NPAGES)));
	for (size_t page = 0; page < NPAGES; page++)
		rewrite(_metadata, &self->a, page);
	drain_lru();
	EXPECT_TRUE(WAIT_FOR(merged_so_far(_metadata, 4 * NPAGES)));
	expect_shared(&self->a, &self->b, 0, NPAGES);
}

/* Whichever of two pages was busy, they are merged when it is not any more. */
TEST_F(shipped, all_later)
{
	const struct file *busy[] = { &self->a, &self->d };
	int fds[2];

	ASSERT_EQ(0, pipe(fds));
	for (int i = 0; i < 2; i++) {
		loff_t pos = HIT * PAGE;

		ASSERT_EQ(PAGE, splice(busy[i]->fd, &pos, fds[1], NULL, PAGE,
				       0));
	}
	start(_metadata, self, "all");
	EXPECT_TRUE(WAIT_FOR(merged_so_far(_metadata, 4 * NPAGES - 4)));
	settle(_metadata, self);
	expect_apart(&self->a, &self->b, HIT, HIT + 1);
	expect_apart(&self->c, &self->d, HIT, HIT + 1);

	close(fds[0]);
	close(fds[1]);
	EXPECT_TRUE(WAIT_FOR(merged_so_far(_metadata, 4 * NPAGES)));
	settle(_metadata, self);
	check_totals(4 * NPAGES);
}

/* Nothing goes from one owner to another, but for pages of zeros on request. */
TEST_F(shipped, all_zeros)
{
	struct file *twins[] = { &self->a, &self->b };
	unsigned char zeros[PAGE] = {};

	for (int i = 0; i < 2; i++) {
		model_write(_metadata, twins[i], HIT * PAGE, zeros, PAGE);
		ASSERT_EQ(PAGE, pwrite(twins[i]->fd, zeros, PAGE, HIT * PAGE));
		ASSERT_EQ(0, fsync(twins[i]->fd));
	}
	ASSERT_EQ(0, fchown(self->b.fd, 1000, 1000));
	start(_metadata, self, "all");
	EXPECT_TRUE(WAIT_FOR(merged_so_far(_metadata, 2 * NPAGES)));
	settle(_metadata, self);
	check_totals(2 * NPAGES);

	set_tunable(_metadata, self, "share_zeros", 1);
	drop_file(_metadata, &self->a);
	read_to_cache(_metadata, &self->a);
	drop_file(_metadata, &self->b);
	read_to_cache(_metadata, &self->b);
	EXPECT_TRUE(WAIT_FOR(merged_so_far(_metadata, 2 * NPAGES + 2)));
	settle(_metadata, self);
	expect_shared(&self->a, &self->b, HIT, HIT + 1);
	expect_apart(&self->a, &self->b, 0, HIT);
	expect_apart(&self->a, &self->b, HIT + 1, NPAGES);
	check_totals(2 * NPAGES + 2);
}

/* ---- dryrun ---- */

TEST_F(shipped, dryrun)
{
	unsigned char *junk = page_buffer(_metadata, 3 * PAGE);
	__u32 zero = 0;

	start(_metadata, self, "dryrun");
	EXPECT_TRUE(WAIT_FOR(look_up(_metadata, self, "report", &zero,
				     "would_save") == 2 * NPAGES));
	settle(_metadata, self);
	EXPECT_EQ(2 * NPAGES, look_up(_metadata, self, "report", &zero,
				      "would_save"));
	EXPECT_EQ(4 * NPAGES, look_up(_metadata, self, "report", &zero,
				      "hashed"));
	EXPECT_LT(0, look_up(_metadata, self, "report", &zero, "metadata"));
	EXPECT_LT(0, look_up(_metadata, self, "report", &zero, "scan_ns"));
	EXPECT_EQ(0, look_up(_metadata, self, "report", &zero, "would_break"));
	EXPECT_LE(2 * NPAGES, counter(_metadata, "merge/would_merge"));
	check_totals(0);
	expect_apart(&self->a, &self->b, 0, NPAGES);
	expect_apart(&self->c, &self->d, 0, NPAGES);

	/* What is written meanwhile would have been broken. */
	fill(junk, 3 * PAGE, 99);
	ASSERT_EQ(3 * PAGE, pwrite(self->a.fd, junk, 3 * PAGE, HIT * PAGE));
	ASSERT_EQ(0, fsync(self->a.fd));
	model_write(_metadata, &self->a, HIT * PAGE, junk, 3 * PAGE);
	free(junk);
	/* It may have looked after the time was new and before the bytes were. */
	ASSERT_EQ(0, futimens(self->a.fd, NULL));
	EXPECT_TRUE(WAIT_FOR(look_up(_metadata, self, "report", &zero,
				     "would_save") == 2 * NPAGES - 3));
	settle(_metadata, self);
	EXPECT_LE(3, look_up(_metadata, self, "report", &zero, "would_break"));
	check_totals(0);
}

/* ---- pressure ---- */

/* "some avg10" of the machine, in 1/100 percent */
static unsigned int memory_pressure(struct __test_metadata *_metadata)
{
	char line[128];
	double avg10;

	ASSERT_EQ(0, read_text("/proc/pressure/memory", line, sizeof(line)));
	ASSERT_EQ(1, sscanf(line, "some avg10=%lf", &avg10)) TH_LOG("%s", line);
	return avg10 * 100;
}

/*
 * A process that needs more memory than its cgroup may have: it reads a file of
 * twice that size, again and again, until it is killed.
 */
static pid_t start_thrashing(struct __test_metadata *_metadata,
			     FIXTURE_DATA(shipped) *self, struct file *big)
{
	char limit[MAX_PATH];
	pid_t pid;

	file_create(_metadata, big, self->dir, "big", 4096 * PAGE, 7);
	drop_file(_metadata, big);
	ASSERT_GT(MAX_PATH, snprintf(limit, MAX_PATH, "%s/memory.max",
				     self->two));
	ASSERT_EQ(0, write_text(limit, "8M"));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		char *map;

		cgroup_enter(_metadata, self->two);
		map = file_map(_metadata, big, PROT_READ, MAP_SHARED);
		for (;;)
			touch(map, big->size);
	}
	return pid;
}

/* Pages that nobody has used lately, or that somebody did. */
static void make_cold(struct __test_metadata *_metadata, struct file *f,
		      bool cold)
{
	char *map = file_map(_metadata, f, PROT_READ, MAP_SHARED);

	touch(map, f->size);
	drain_lru();
	if (cold)
		ASSERT_EQ(0, madvise(map, f->size, MADV_COLD));
	file_unmap(f, map);
	for (int i = 0; !cold && i < 3; i++)
		read_to_cache(_metadata, f);
	drain_lru();
}

#define TRACING "/sys/kernel/tracing/"

/* Were all pages of c and d merged before any of a and b? */
static bool cold_came_first(struct __test_metadata *_metadata,
			    FIXTURE_DATA(shipped) *self)
{
	__u64 cold[] = {
		file_id(_metadata, &self->c), file_id(_metadata, &self->d),
	};
	__u64 warm[] = {
		file_id(_metadata, &self->a), file_id(_metadata, &self->b),
	};
	long line_nr = 0, last_cold = 0, first_warm = 0;
	FILE *trace = fopen(TRACING "trace", "r");
	char line[512];

	ASSERT_NE(NULL, trace);
	while (fgets(line, sizeof(line), trace)) {
		const char *event = strstr(line, "ksm_ext_merge: ");
		unsigned long long src;

		line_nr++;
		if (!event ||
		    sscanf(event, "%*s dst=%*u:%*u src=%llu", &src) != 1)
			continue;
		if (src == cold[0] || src == cold[1])
			last_cold = line_nr;
		if (!first_warm && (src == warm[0] || src == warm[1]))
			first_warm = line_nr;
	}
	fclose(trace);
	EXPECT_LT(0, last_cold);
	EXPECT_LT(0, first_warm);
	return last_cold < first_warm;
}

/* Nothing while memory is at hand; under pressure all, in the end. */
TEST_F(shipped, pressure)
{
	struct file big;
	long slices;
	pid_t pid;

	make_cold(_metadata, &self->a, false);
	make_cold(_metadata, &self->b, false);
	make_cold(_metadata, &self->c, true);
	make_cold(_metadata, &self->d, true);
	make_cgroups(_metadata, self);
	load(_metadata, self, "pressure");
	set_tunable(_metadata, self, "idle_ms", 20);
	/* More than a machine can wait for memory */
	set_tunable(_metadata, self, "min_pressure", 10001);
	pid = start_thrashing(_metadata, self, &big);
	ASSERT_TRUE(WAIT_FOR(memory_pressure(_metadata) >= 100));

	let_run(_metadata);
	slices = counter(_metadata, "slices");
	ASSERT_TRUE(WAIT_FOR(counter(_metadata, "slices") >= slices + 10));
	check_totals(0);
	EXPECT_EQ(0, progress_of(_metadata, self, "total_looks"));

	ASSERT_EQ(0, write_text(TRACING "events/ksm_ext/ksm_ext_merge/enable",
				"1"));
	set_tunable(_metadata, self, "min_pressure", 100);
	EXPECT_TRUE(WAIT_FOR(merged_so_far(_metadata, 4 * NPAGES)));
	expect_shared(&self->a, &self->b, 0, NPAGES);
	expect_shared(&self->c, &self->d, 0, NPAGES);
	EXPECT_TRUE(cold_came_first(_metadata, self));
	EXPECT_EQ(0, write_text(TRACING "events/ksm_ext/ksm_ext_merge/enable",
				"0"));
	kill(pid, SIGKILL);
	ASSERT_EQ(pid, waitpid(pid, NULL, 0));
	file_close(&big);
}

int main(int argc, char **argv)
{
	/* Its programs find files; as a policy it stays away. */
	manual_load();
	return test_harness_run(argc, argv);
}
