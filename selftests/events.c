// SPDX-License-Identifier: GPL-2.0
/*
 * What policies and people get to know of files and pages, and what holds a
 * policy back that does too much.
 */
#include <dirent.h>
#include <linux/membarrier.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/utsname.h>
#include <time.h>

#include "ksm_ext_test.h"
#include "bpf/events.h"
#include "events.skel.h"

#define NPAGES	8
#define SIZE	((NPAGES - 1) * PAGE + 1000)
#define HIT	2

/* Notes of breaks that there is room for, in the kernel */
#define NBREAKS	2048

/* enum ksm_ext_page_state, enum ksm_ext_refusal of the kernel */
enum { PAGE_NONE, PAGE_OWN, PAGE_SHARED };
enum { MERGED, GONE, NOT_CACHED, THRASH = 14 };

FIXTURE(events) {
	char dir[MAX_PATH];
	struct file a, b;	/* twins */
	struct events *skel;
	struct bpf_link *link;
};

static __u64 ino_of(struct __test_metadata *_metadata, const struct file *f)
{
	struct stat st;

	ASSERT_EQ(0, fstat(f->fd, &st));
	return st.st_ino;
}

static void set_listed(struct __test_metadata *_metadata, struct events *skel,
		       const struct file *f, __u64 domain)
{
	__u64 ino = ino_of(_metadata, f);

	ASSERT_EQ(0, bpf_map__update_elem(skel->maps.domains, &ino,
					  sizeof(ino), &domain, sizeof(domain),
					  0));
}

FIXTURE_SETUP(events)
{
	if (control)
		SKIP(return, "control run: no policies");
	test_begin(_metadata, self->dir);
	file_create(_metadata, &self->a, self->dir, "a", SIZE, 1);
	file_create(_metadata, &self->b, self->dir, "b", SIZE, 1);
	self->skel = events__open_and_load();
	ASSERT_NE(NULL, self->skel) TH_LOG("%s", strerror(errno));
	set_listed(_metadata, self->skel, &self->a, 1);
	set_listed(_metadata, self->skel, &self->b, 1);
}

FIXTURE_TEARDOWN(events)
{
	bpf_link__destroy(self->link);
	events__destroy(self->skel);
	EXPECT_EQ(0, write_text(KSM_EXT_SYSFS "max_cpu_percent", "90"));
	EXPECT_EQ(0, write_text(KSM_EXT_SYSFS "thrash_pages", "1024"));
	file_close(&self->a);
	file_close(&self->b);
	test_end(_metadata, self->dir);
}

static void expect_state(struct __test_metadata *_metadata, const char *want)
{
	char state[64] = "";

	EXPECT_EQ(0, read_text(KSM_EXT_SYSFS "state", state, sizeof(state)));
	EXPECT_EQ(0, strcmp(state, want)) TH_LOG("%s, not %s", state, want);
}

static void attach(struct __test_metadata *_metadata,
		   FIXTURE_DATA(events) *self, struct bpf_map *map)
{
	self->link = bpf_map__attach_struct_ops(map);
	ASSERT_NE(NULL, self->link) {
		TH_LOG("%s: %s", bpf_map__name(map), strerror(errno));
	}
}

static void run_prog(struct __test_metadata *_metadata,
		     struct bpf_program *prog,
		     void *args, size_t size)
{
	LIBBPF_OPTS(bpf_test_run_opts, opts, .ctx_in = args,
		    .ctx_size_in = size);

	ASSERT_EQ(0, bpf_prog_test_run_opts(bpf_program__fd(prog), &opts));
}

/* All about a page of an open file. */
static void ask(struct __test_metadata *_metadata, FIXTURE_DATA(events) *self,
		const struct file *f, __u64 index)
{
	struct ask_args args = {
		.fd = f->fd,
		.dev = fs_dev(_metadata, f->fd),
		.ino = ino_of(_metadata, f),
		.index = index,
	};

	run_prog(_metadata, self->skel->progs.ask, &args, sizeof(args));
	ASSERT_LT(0, self->skel->bss->found_by_fd);
	ASSERT_EQ(0, self->skel->bss->stat_ret);
	ASSERT_EQ(0, self->skel->bss->info_ret);
}

static __u64 times_handed(struct __test_metadata *_metadata,
			  FIXTURE_DATA(events) *self, const struct file *f)
{
	__u64 ino = ino_of(_metadata, f), times = 0;

	bpf_map__lookup_elem(self->skel->maps.handed, &ino, sizeof(ino),
			     &times, sizeof(times), 0);
	return times;
}

/* Merge the first pages of the twins, under a policy that does nothing. */
static int merge_with(struct __test_metadata *_metadata,
		      FIXTURE_DATA(events) *self, unsigned int nr)
{
	attach(_metadata, self, self->skel->maps.idle);
	return merge_pages(_metadata, &self->a, 0, &self->b, 0, nr);
}

/* ---- facts ---- */

/*
 * Is this the path to the file within its file system?  Then it is the end of
 * the one that the test has, from a directory on; that of the test at least.
 */
static void expect_path(struct __test_metadata *_metadata,
			const struct file *f, const char *path)
{
	const char *dir = strstr(f->path, "/test.");
	size_t len = strlen(path);

	ASSERT_NE(NULL, dir);
	EXPECT_LE(strlen(dir), len) TH_LOG("%s", path);
	ASSERT_GE(strlen(f->path), len) TH_LOG("%s", path);
	EXPECT_EQ('/', *path);
	EXPECT_EQ(0, strcmp(f->path + strlen(f->path) - len, path)) {
		TH_LOG("%s, not %s", path, f->path);
	}
}

TEST_F(events, file)
{
	const typeof(self->skel->bss->stat) *st = &self->skel->bss->stat;
	unsigned char *map;

	ask(_metadata, self, &self->a, 0);
	EXPECT_EQ(ino_of(_metadata, &self->a), st->ino);
	EXPECT_EQ(self->skel->bss->found_by_fd, st->id);
	EXPECT_EQ(self->skel->bss->found_by_fd, self->skel->bss->found_by_ino);
	EXPECT_EQ(SIZE, st->size);
	EXPECT_NE(0, st->cgroup);
	EXPECT_EQ(0, st->flags & KSM_EXT_FILE_EXEC);
	/* It was written and read. */
	EXPECT_LT(0, st->active);
	EXPECT_GE(NPAGES, st->active);
	EXPECT_EQ(strlen(self->skel->bss->path), self->skel->bss->path_ret);
	expect_path(_metadata, &self->a, self->skel->bss->path);

	map = mmap(NULL, SIZE, PROT_READ | PROT_EXEC, MAP_PRIVATE, self->a.fd,
		   0);
	ASSERT_NE(MAP_FAILED, map);
	ask(_metadata, self, &self->a, 0);
	EXPECT_EQ(KSM_EXT_FILE_EXEC, st->flags & KSM_EXT_FILE_EXEC);
	ASSERT_EQ(0, munmap(map, SIZE));
	ask(_metadata, self, &self->a, 0);
	EXPECT_EQ(0, st->flags & KSM_EXT_FILE_EXEC);
}

/* Nobody is found who is not there, and only files are. */
TEST_F(events, no_file)
{
	struct ask_args args = { .fd = -1, .dev = -1, .ino = -1 };
	int dir = open(self->dir, O_RDONLY | O_DIRECTORY);

	run_prog(_metadata, self->skel->progs.ask, &args, sizeof(args));
	EXPECT_EQ(-ENOENT, self->skel->bss->found_by_ino);
	EXPECT_EQ(-ENOENT, self->skel->bss->info_ret);
	EXPECT_EQ(-ENOENT, self->skel->bss->path_ret);
	args.fd = 12345;
	run_prog(_metadata, self->skel->progs.ask, &args, sizeof(args));
	EXPECT_EQ(-EBADF, self->skel->bss->found_by_fd);
	args.fd = dir;
	run_prog(_metadata, self->skel->progs.ask, &args, sizeof(args));
	EXPECT_EQ(-EOPNOTSUPP, self->skel->bss->found_by_fd);
	close(dir);
}

/* Files that are charged to a cgroup say so. */
TEST_F(events, cgroup)
{
	char group[MAX_PATH] = "/sys/fs/cgroup/events", path[MAX_PATH + 32];
	struct stat st;
	struct file c;
	int status;
	pid_t pid;

	ASSERT_EQ(0, write_text("/sys/fs/cgroup/cgroup.subtree_control",
				"+memory"));
	ASSERT_TRUE(!mkdir(group, 0755) || errno == EEXIST) {
		TH_LOG("%s: %s", group, strerror(errno));
	}
	ASSERT_EQ(0, stat(group, &st));
	file_create(_metadata, &c, self->dir, "c", SIZE, 2);
	drop_file(_metadata, &c);
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		snprintf(path, sizeof(path), "%s/cgroup.procs", group);
		ASSERT_EQ(0, write_text(path, "0"));
		read_to_cache(_metadata, &c);
		_exit(0);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_TRUE(WIFEXITED(status));
	ask(_metadata, self, &c, 0);
	EXPECT_EQ(st.st_ino, self->skel->bss->stat.cgroup);
	ask(_metadata, self, &self->a, 0);
	EXPECT_NE(st.st_ino, self->skel->bss->stat.cgroup);
	file_close(&c);
	rmdir(group);
}

TEST_F(events, page)
{
	const typeof(self->skel->bss->info) *info = &self->skel->bss->info;
	unsigned char *map;
	__u64 root;

	ask(_metadata, self, &self->a, HIT);
	EXPECT_EQ(PAGE_OWN, info->state);
	EXPECT_EQ(0, info->root);
	EXPECT_EQ(0, info->nr_sharing);
	EXPECT_EQ(MERGED, info->refusal);
	EXPECT_EQ(0, info->flags & KSM_EXT_PAGE_MAPPED);

	map = file_map(_metadata, &self->a, PROT_READ, MAP_SHARED);
	touch(map, SIZE);
	ask(_metadata, self, &self->a, HIT);
	EXPECT_EQ(KSM_EXT_PAGE_MAPPED, info->flags & KSM_EXT_PAGE_MAPPED);
	file_unmap(&self->a, map);

	attach(_metadata, self, self->skel->maps.merging);
	ASSERT_TRUE(WAIT_FOR(counter(_metadata, "aliases") == 2 * NPAGES));
	ask(_metadata, self, &self->a, HIT);
	EXPECT_EQ(PAGE_SHARED, info->state);
	EXPECT_EQ(1, info->domain);
	EXPECT_EQ(2, info->nr_sharing);
	EXPECT_EQ(MERGED, info->refusal);
	root = info->root;
	EXPECT_NE(0, root);
	ask(_metadata, self, &self->a, HIT + 1);
	EXPECT_NE(root, info->root);
	ask(_metadata, self, &self->b, HIT);
	EXPECT_EQ(root, info->root);

	/* Behind the end */
	ask(_metadata, self, &self->b, NPAGES);
	EXPECT_EQ(PAGE_NONE, info->state);
	EXPECT_EQ(NOT_CACHED, info->refusal);
}

/* Every shared page is listed once, and no other. */
TEST_F(events, list)
{
	unsigned int seen[2][NPAGES] = {}, lines = 0;
	unsigned long long roots[2][NPAGES];
	struct bpf_link *link;
	char line[256];
	FILE *in;
	int fd;

	ASSERT_EQ(NPAGES - 1, merge_with(_metadata, self, NPAGES - 1));
	link = bpf_program__attach_iter(self->skel->progs.list_aliases, NULL);
	ASSERT_NE(NULL, link);
	fd = bpf_iter_create(bpf_link__fd(link));
	ASSERT_LE(0, fd);
	in = fdopen(fd, "r");
	while (fgets(line, sizeof(line), in)) {
		unsigned long long index, domain, ino, root;
		unsigned int nr, nr_sharing, which;
		char name[64] = "", path[MAX_PATH] = "";
		const struct file *f;

		ASSERT_EQ(8, sscanf(line, "%llu %u %u %llu %llu %llx %63s %255s",
				    &index, &nr, &nr_sharing, &domain, &ino,
				    &root, name, path)) TH_LOG("%s", line);
		which = *name == 'b';
		EXPECT_EQ(0, strcmp(name, which ? "b" : "a"));
		f = which ? &self->b : &self->a;
		EXPECT_EQ(ino_of(_metadata, f), ino);
		expect_path(_metadata, f, path);
		EXPECT_EQ(1, nr);
		EXPECT_EQ(2, nr_sharing);
		EXPECT_EQ(1, domain);
		ASSERT_GT(NPAGES, index);
		seen[which][index]++;
		roots[which][index] = root;
		lines++;
	}
	fclose(in);
	bpf_link__destroy(link);
	EXPECT_EQ(2 * (NPAGES - 1), lines);
	for (size_t i = 0; i < NPAGES - 1; i++) {
		EXPECT_EQ(1, seen[0][i]);
		EXPECT_EQ(1, seen[1][i]);
		EXPECT_EQ(roots[0][i], roots[1][i]);
		EXPECT_NE(roots[0][i], roots[0][(i + 1) % (NPAGES - 1)]);
	}
}

/* ---- merged(), and dry runs ---- */

TEST_F(events, merged)
{
	const typeof(self->skel->bss->merged_last) *last;
	struct file *src = &self->b;
	__u64 told;

	attach(_metadata, self, self->skel->maps.merging);
	ASSERT_TRUE(WAIT_FOR(counter(_metadata, "aliases") == 2 * NPAGES));
	last = &self->skel->bss->merged_last;
	ASSERT_TRUE(WAIT_FOR(self->skel->bss->merged_events));
	/* Which one came first is known to the kernel only. */
	ask(_metadata, self, &self->a, 0);
	if (last->file == self->skel->bss->found_by_fd)
		src = &self->a;
	ask(_metadata, self, src, 0);
	EXPECT_EQ(self->skel->bss->found_by_fd, last->file);
	EXPECT_GE(NPAGES, last->index + last->nr);

	/* What shares already is no news. */
	wait_for_scans(_metadata);
	told = self->skel->bss->merged_events;
	wait_for_scans(_metadata);
	EXPECT_EQ(told, self->skel->bss->merged_events);

	/* One page comes back. */
	ASSERT_EQ(PAGE, pwrite(src->fd, src->want + HIT * PAGE, PAGE,
			       HIT * PAGE));
	ASSERT_EQ(0, fsync(src->fd));
	ASSERT_TRUE(WAIT_FOR(counter(_metadata, "aliases") == 2 * NPAGES));
	ASSERT_TRUE(WAIT_FOR(self->skel->bss->merged_events == told + 1));
	EXPECT_EQ(HIT, last->index);
	EXPECT_EQ(1, last->nr);
}

TEST_F(events, dry_run)
{
	long would = counter(_metadata, "merge/would_merge");
	long applied = counter(_metadata, "merge/applied");

	attach(_metadata, self, self->skel->maps.dry);
	EXPECT_TRUE(WAIT_FOR(self->skel->bss->mergeable == NPAGES));
	EXPECT_LE(would + NPAGES, counter(_metadata, "merge/would_merge"));
	EXPECT_EQ(applied, counter(_metadata, "merge/applied"));
	EXPECT_EQ(0, self->skel->bss->merged_events);
	check_totals(0);
	for (size_t i = 0; i < NPAGES; i++)
		EXPECT_APART(&self->a, i, &self->b, i);

	/* It sees what differs, */
	ASSERT_EQ(1, pwrite(self->b.fd, "x", 1, HIT * PAGE));
	model_write(_metadata, &self->b, HIT * PAGE, "x", 1);
	ASSERT_EQ(0, fsync(self->b.fd));
	EXPECT_TRUE(WAIT_FOR(self->skel->bss->mergeable == HIT));

	/* and domains. */
	EXPECT_EQ(0, bpf_link__destroy(self->link));
	attach(_metadata, self, self->skel->maps.merging);
	ASSERT_TRUE(WAIT_FOR(counter(_metadata, "aliases") == 2 * HIT));
	check_file(&self->a);
	check_file(&self->b);
}

/* ---- zeros, which all domains may share ---- */

TEST_F(events, zeros)
{
	struct file *files[] = { &self->a, &self->b };
	static const char zeros[PAGE];
	struct file c;

	file_create(_metadata, &c, self->dir, "c", SIZE, 1);
	for (size_t i = 0; i < 2; i++) {
		ASSERT_EQ(PAGE, pwrite(files[i]->fd, zeros, PAGE, HIT * PAGE));
		model_write(_metadata, files[i], HIT * PAGE, zeros, PAGE);
		ASSERT_EQ(0, fsync(files[i]->fd));
	}
	ASSERT_EQ(PAGE, pwrite(c.fd, zeros, PAGE, 0));
	model_write(_metadata, &c, 0, zeros, PAGE);
	ASSERT_EQ(0, fsync(c.fd));
	set_listed(_metadata, self->skel, &self->b, 2);
	set_listed(_metadata, self->skel, &c, 0);
	attach(_metadata, self, self->skel->maps.idle);

	EXPECT_EQ(1, merge_pages(_metadata, &self->a, HIT, &self->b, HIT, 1));
	EXPECT_SHARED(&self->a, HIT, &self->b, HIT);
	/* All else stays apart, also behind zeros. */
	EXPECT_EQ(1, merge_pages(_metadata, &self->a, HIT, &self->b, HIT, 2));
	EXPECT_EQ(-EXDEV, merge_pages(_metadata, &self->a, HIT + 1, &self->b,
				      HIT + 1, 1));
	EXPECT_EQ(-EXDEV, merge_pages(_metadata, &self->a, HIT, &self->b,
				      HIT + 1, 1));
	check_totals(2);

	/* Never means never. */
	EXPECT_EQ(-EPERM, merge_pages(_metadata, &self->a, HIT, &c, 0, 1));
	set_listed(_metadata, self->skel, &c, 3);
	EXPECT_EQ(1, merge_pages(_metadata, &self->a, HIT, &c, 0, 1));
	check_totals(3);

	ASSERT_EQ(1, pwrite(self->a.fd, "x", 1, HIT * PAGE + 5));
	model_write(_metadata, &self->a, HIT * PAGE + 5, "x", 1);
	EXPECT_SHARED(&self->b, HIT, &c, 0);
	check_file(&self->a);
	check_file(&self->b);
	check_file(&c);

	/* A root of one domain is no exception because another one's is. */
	set_listed(_metadata, self->skel, &c, 1);
	EXPECT_EQ(1, merge_pages(_metadata, &self->a, HIT + 1, &c, HIT + 1, 1));
	EXPECT_EQ(-EXDEV, merge_pages(_metadata, &self->a, HIT + 1, &self->b,
				      HIT + 1, 1));
	file_close(&c);
}

/* ---- reads ---- */

TEST_F(events, fresh)
{
	struct file c;

	file_create(_metadata, &c, self->dir, "c", SIZE, 2);
	drop_file(_metadata, &self->b);
	drop_file(_metadata, &c);
	attach(_metadata, self, self->skel->maps.fresh);
	read_to_cache(_metadata, &self->b);
	EXPECT_TRUE(WAIT_FOR(times_handed(_metadata, self, &self->b)));
	/* That was read before, this not at all. */
	EXPECT_EQ(0, times_handed(_metadata, self, &self->a));
	EXPECT_EQ(0, times_handed(_metadata, self, &c));

	/* Through a mapping, too */
	touch(file_map(_metadata, &c, PROT_READ, MAP_SHARED), SIZE);
	EXPECT_TRUE(WAIT_FOR(times_handed(_metadata, self, &c)));

	/* Nobody else takes them. */
	run_prog(_metadata, self->skel->progs.steal, NULL, 0);
	EXPECT_EQ(-EPERM, self->skel->bss->fresh_ret);
	file_close(&c);
}

/*
 * Files that go before anybody looked at them: their memory becomes that of
 * files that nobody reads, which must not be handed out for it.
 */
TEST_F(events, fresh_gone)
{
	enum { NR_GONE = 50 };
	struct file c, unread[NR_GONE];

	attach(_metadata, self, self->skel->maps.fresh);
	ASSERT_EQ(0, write_text(KSM_EXT_SYSFS "run", "0"));
	for (int i = 0; i < NR_GONE; i++) {
		file_create(_metadata, &c, self->dir, "c", SIZE, 2);
		drop_file(_metadata, &c);
		read_to_cache(_metadata, &c);
		ASSERT_EQ(0, unlink(c.path));
		file_close(&c);
	}
	ASSERT_EQ(0, syscall(__NR_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0));
	for (int i = 0; i < NR_GONE; i++) {
		char name[16];

		snprintf(name, sizeof(name), "unread%d", i);
		file_create(_metadata, &unread[i], self->dir, name, SIZE, 2);
	}
	drop_file(_metadata, &self->b);
	read_to_cache(_metadata, &self->b);
	ASSERT_EQ(0, write_text(KSM_EXT_SYSFS "run", "1"));
	EXPECT_TRUE(WAIT_FOR(times_handed(_metadata, self, &self->b)));
	for (int i = 0; i < NR_GONE; i++) {
		EXPECT_EQ(0, times_handed(_metadata, self, &unread[i]));
		file_close(&unread[i]);
	}
}

static pid_t ksm_extd_pid(struct __test_metadata *_metadata)
{
	char path[64 + NAME_MAX], comm[32];
	struct dirent *entry;
	DIR *proc = opendir("/proc");
	pid_t pid = 0;

	ASSERT_NE(NULL, proc);
	while (!pid && (entry = readdir(proc))) {
		snprintf(path, sizeof(path), "/proc/%s/comm", entry->d_name);
		if (!read_text(path, comm, sizeof(comm)) &&
		    !strncmp(comm, "ksm_extd", 8))
			pid = atoi(entry->d_name);
	}
	closedir(proc);
	ASSERT_LT(0, pid);
	return pid;
}

static void run_on(struct __test_metadata *_metadata, pid_t pid, int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	ASSERT_EQ(0, sched_setaffinity(pid, sizeof(set), &set));
}

/* Pages just read wait for the LRU lists on the processor that read them. */
TEST_F(events, other_cpu)
{
	cpu_set_t all;
	pid_t scans;

	ASSERT_EQ(0, sched_getaffinity(0, sizeof(all), &all));
	if (CPU_COUNT(&all) < 2)
		SKIP(return, "only one processor");
	attach(_metadata, self, self->skel->maps.merging);
	scans = ksm_extd_pid(_metadata);
	run_on(_metadata, scans, 1);
	run_on(_metadata, 0, 0);
	for (int i = 0; i < 5; i++) {
		drop_file(_metadata, &self->b);
		ASSERT_EQ(0, resident(_metadata, &self->b));
		read_to_cache(_metadata, &self->b);
		EXPECT_TRUE(WAIT_FOR(counter(_metadata, "aliases") ==
				     2 * NPAGES));
	}
	ASSERT_EQ(0, sched_setaffinity(scans, sizeof(all), &all));
}

/* Who did not ask is not woken, however much is read. */
TEST_F(events, deaf)
{
	attach(_metadata, self, self->skel->maps.deaf);
	ASSERT_TRUE(WAIT_FOR(self->skel->bss->deaf_scans == 1));
	EXPECT_EQ(-EPERM, self->skel->bss->fresh_ret);
	for (int i = 0; i < 50; i++) {
		drop_file(_metadata, &self->b);
		read_to_cache(_metadata, &self->b);
	}
	EXPECT_EQ(0, bpf_link__update_map(self->link,
					  self->skel->maps.fresh));
	drop_file(_metadata, &self->a);
	read_to_cache(_metadata, &self->a);
	EXPECT_TRUE(WAIT_FOR(times_handed(_metadata, self, &self->a)));
	EXPECT_EQ(0, times_handed(_metadata, self, &self->b));
	EXPECT_EQ(1, self->skel->bss->deaf_scans);
}

/* ---- what holds a policy back ---- */

/* Time on a processor, in ns, that ksm_extd has had. */
static long ksm_extd_runtime(struct __test_metadata *_metadata)
{
	unsigned long user, system;
	char path[64], text[512];

	snprintf(path, sizeof(path), "/proc/%d/stat", ksm_extd_pid(_metadata));
	ASSERT_EQ(0, read_text(path, text, sizeof(text)));
	ASSERT_EQ(2, sscanf(strrchr(text, ')'), ") %*c %*d %*d %*d %*d "
			    "%*d %*u %*u %*u %*u %*u %lu %lu", &user, &system));
	return (user + system) * (1000000000 / sysconf(_SC_CLK_TCK));
}

static long now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000L + ts.tv_nsec;
}

/* From when on, and how much ksm_extd had done and used by then */
struct usage {
	long start, began, slices;
};

static struct usage usage_begin(struct __test_metadata *_metadata)
{
	return (struct usage){
		.start = now_ns(),
		.began = ksm_extd_runtime(_metadata),
		.slices = counter(_metadata, "slices"),
	};
}

/*
 * Less than its share is no fault, for the machine may be slow; more is.  What
 * it may have saved up before is a second's worth, and what it has to make up
 * for may be the last of @slices that took as long as they liked.
 */
static void usage_end(struct __test_metadata *_metadata,
		      const struct usage *usage, unsigned int percent,
		      long slices)
{
	/* In this order: what is used meanwhile has its time. */
	long took = ksm_extd_runtime(_metadata) - usage->began;
	long wall = now_ns() - usage->start;
	long may = (wall + 1000000000) * percent / 100;

	/* Two, for one may have been under way when this began. */
	may += 2 * took / slices;
	EXPECT_LT(0, took);
	EXPECT_GT(may, took) {
		TH_LOG("%ld ms of %ld, in %ld slices", took / 1000000,
		       wall / 1000000, slices);
	}
}

static bool seconds_ago(const struct usage *usage, int seconds)
{
	return now_ns() - usage->start > seconds * 1000000000L;
}

TEST_F(events, quota)
{
	struct usage usage;

	ASSERT_EQ(0, write_text(KSM_EXT_SYSFS "max_cpu_percent", "5"));
	attach(_metadata, self, self->skel->maps.greedy);
	ASSERT_TRUE(WAIT_FOR(counter(_metadata, "slices") > 0));
	usage = usage_begin(_metadata);
	ASSERT_TRUE(WAIT_FOR(seconds_ago(&usage, 6) &&
			     counter(_metadata, "slices") > usage.slices + 3));
	usage_end(_metadata, &usage, 5,
		  counter(_metadata, "slices") - usage.slices);

	/* Resting is not stalling, and does not delay a swap. */
	EXPECT_EQ(0, bpf_link__update_map(self->link,
					  self->skel->maps.merging));
	ASSERT_EQ(0, write_text(KSM_EXT_SYSFS "max_cpu_percent", "100"));
	EXPECT_TRUE(WAIT_FOR(counter(_metadata, "aliases") == 2 * NPAGES));
}

/* Who does not ask burns as long as it likes, and waits afterwards. */
TEST_F(events, quota_without_verbs)
{
	struct usage usage;

	ASSERT_EQ(0, write_text(KSM_EXT_SYSFS "max_cpu_percent", "25"));
	self->skel->bss->long_turns = 5000;
	attach(_metadata, self, self->skel->maps.burning);
	ASSERT_TRUE(WAIT_FOR(counter(_metadata, "slices") > 0));
	usage = usage_begin(_metadata);
	ASSERT_TRUE(WAIT_FOR(seconds_ago(&usage, 6) &&
			     counter(_metadata, "slices") > usage.slices + 6));
	usage_end(_metadata, &usage, 25,
		  counter(_metadata, "slices") - usage.slices);
	expect_state(_metadata, "active");
}

/* Nor does it help to be another one each time. */
TEST_F(events, quota_of_several)
{
	struct bpf_map *maps[2] = { self->skel->maps.burning_too,
				    self->skel->maps.burning };
	struct usage usage;
	long slices = 0;

	ASSERT_EQ(0, write_text(KSM_EXT_SYSFS "max_cpu_percent", "25"));
	self->skel->bss->long_turns = 5000;
	attach(_metadata, self, self->skel->maps.burning);
	ASSERT_TRUE(WAIT_FOR(counter(_metadata, "slices") > 0));
	usage = usage_begin(_metadata);
	while (slices < 6 || !seconds_ago(&usage, 6)) {
		ASSERT_EQ(0, bpf_link__update_map(self->link,
						  maps[slices % 2]));
		ASSERT_TRUE(WAIT_FOR(counter(_metadata, "slices") > 0));
		slices++;
	}
	usage_end(_metadata, &usage, 25, slices);
}

/* ---- who else gets the processor while a scan takes long? ---- */

struct sibling {
	const volatile struct events__bss *bss;
	atomic_bool stop;
	unsigned int sightings;		/* of one scan that goes on */
	int err;
};

/* Of a long scan on its processor it can see only what was interrupted. */
static void *watch_scan(void *arg)
{
	struct sibling *s = arg;
	__u64 scan = 0, turns = 0;
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(0, &set);
	s->err = sched_setaffinity(0, sizeof(set), &set);
	while (!s->err && !s->stop && s->sightings < 10) {
		if (!s->bss->long_scan)
			continue;
		if (s->bss->long_scan != scan) {
			scan = s->bss->long_scan;
			s->sightings = 0;
		} else if (s->bss->turns != turns) {
			s->sightings++;
		}
		turns = s->bss->turns;
	}
	return NULL;
}

static void preempted(struct __test_metadata *_metadata,
		      FIXTURE_DATA(events) *self, struct bpf_map *map)
{
	struct sibling s = { .bss = self->skel->bss };
	pthread_t thread;
	cpu_set_t all;
	pid_t scans;

	/* Nothing but the scheduler stops it. */
	ASSERT_EQ(0, write_text(KSM_EXT_SYSFS "max_cpu_percent", "100"));
	self->skel->bss->long_turns = 1 << 18;
	attach(_metadata, self, self->skel->maps.idle);
	scans = ksm_extd_pid(_metadata);
	ASSERT_EQ(0, sched_getaffinity(scans, sizeof(all), &all));
	run_on(_metadata, scans, 0);
	ASSERT_EQ(0, bpf_link__update_map(self->link, map));
	ASSERT_EQ(0, pthread_create(&thread, NULL, watch_scan, &s));
	EXPECT_TRUE(WAIT_FOR(s.err || s.sightings >= 10));
	s.stop = true;
	self->skel->bss->enough = 1;
	ASSERT_EQ(0, pthread_join(thread, NULL));
	EXPECT_EQ(0, s.err);
	expect_state(_metadata, "active");
	ASSERT_EQ(0, sched_setaffinity(scans, sizeof(all), &all));
}

TEST_F(events, preempted_in_verbs)
{
	preempted(_metadata, self, self->skel->maps.asking);
}

/* Where the kernel is not preemptible, no program that calls nothing is. */
TEST_F(events, preempted)
{
	struct utsname name;

	ASSERT_EQ(0, uname(&name));
	if (!strstr(name.version, "PREEMPT"))
		SKIP(return, "the kernel is not preemptible");
	preempted(_metadata, self, self->skel->maps.burning);
}

/* ---- a flood ---- */

struct writer {
	struct file *f;
	const unsigned char *twin;	/* what both files began with */
	unsigned int seed;
	atomic_bool stop;
	unsigned long writes, wrong;
	int err;
};

/* Pages that are now equal in both files and now not; look after each write. */
static void *write_pages(void *arg)
{
	struct writer *w = arg;
	unsigned char page[PAGE];

	while (!w->stop && !w->err) {
		size_t i = rand_r(&w->seed) % (NPAGES - 1), off = i * PAGE;

		memcpy(page, w->twin + off, PAGE);
		if (rand_r(&w->seed) % 4 == 0)
			page[rand_r(&w->seed) % PAGE] ^= 1 + w->seed % 255;
		memcpy(w->f->want + off, page, PAGE);
		if (pwrite(w->f->fd, page, PAGE, off) != PAGE ||
		    pread(w->f->fd, page, PAGE, off) != PAGE)
			w->err = errno ?: EIO;
		w->wrong += !!memcmp(page, w->f->want + off, PAGE);
		if (++w->writes % 8 == 0 && fsync(w->f->fd))
			w->err = errno;
	}
	return NULL;
}

/* Merges and refusals without end, while both files are written to. */
TEST_F(events, flood)
{
	struct events__bss *bss = self->skel->bss;
	struct writer w[2] = {
		{ .f = &self->a, .seed = 1 }, { .f = &self->b, .seed = 2 },
	};
	unsigned char *twin = page_buffer(_metadata, NPAGES * PAGE);
	pthread_t threads[2];
	struct usage usage;

	memcpy(twin, self->a.want, SIZE);
	ASSERT_EQ(0, write_text(KSM_EXT_SYSFS "max_cpu_percent", "25"));
	ASSERT_EQ(0, write_text(KSM_EXT_SYSFS "thrash_pages", "0"));
	bss->flood_dst = file_id(_metadata, &self->a);
	bss->flood_src = file_id(_metadata, &self->b);
	bss->flood_pages = NPAGES;
	attach(_metadata, self, self->skel->maps.flood);
	usage = usage_begin(_metadata);
	for (int i = 0; i < 2; i++) {
		w[i].twin = twin;
		ASSERT_EQ(0, pthread_create(&threads[i], NULL, write_pages,
					    &w[i]));
	}
	EXPECT_TRUE(WAIT_FOR(seconds_ago(&usage, 6) &&
			     counter(_metadata, "slices") > usage.slices + 3 &&
			     bss->flood_merged > 1000 &&
			     bss->flood_unmerged > 1000 &&
			     bss->flood_refused > 1000));
	usage_end(_metadata, &usage, 25,
		  counter(_metadata, "slices") - usage.slices);
	expect_state(_metadata, "active");
	/* It does not hold up who comes after it. */
	EXPECT_EQ(0, bpf_link__update_map(self->link,
					  self->skel->maps.merging));
	for (int i = 0; i < 2; i++) {
		w[i].stop = true;
		ASSERT_EQ(0, pthread_join(threads[i], NULL));
		EXPECT_EQ(0, w[i].err);
		EXPECT_EQ(0, w[i].wrong);
		EXPECT_LT(100, w[i].writes);
	}
	TH_LOG("%lu + %lu writes, %llu pages merged, %llu unmerged, %llu refused",
	       w[0].writes, w[1].writes, bss->flood_merged,
	       bss->flood_unmerged, bss->flood_refused);
	check_file(&self->a);
	check_file(&self->b);
	check_disk(&self->a);
	check_disk(&self->b);

	/* All is as before. */
	for (int i = 0; i < 2; i++) {
		ASSERT_EQ(SIZE, pwrite(w[i].f->fd, twin, SIZE, 0));
		ASSERT_EQ(0, fsync(w[i].f->fd));
		model_write(_metadata, w[i].f, 0, twin, SIZE);
	}
	EXPECT_TRUE(WAIT_FOR(counter(_metadata, "aliases") == 2 * NPAGES));
	check_file(&self->a);
	check_file(&self->b);
	free(twin);
}

TEST_F(events, bad_numbers)
{
	static const char *const nonsense[] = { "0", "101", "-1", "x" };

	for (size_t i = 0; i < ARRAY_SIZE(nonsense); i++) {
		EXPECT_EQ(-EINVAL,
			  write_text(KSM_EXT_SYSFS "max_cpu_percent",
				     nonsense[i])) TH_LOG("%s", nonsense[i]);
	}
	EXPECT_EQ(90, counter(_metadata, "max_cpu_percent"));
	EXPECT_EQ(-EINVAL, write_text(KSM_EXT_SYSFS "thrash_pages", "-1"));
	EXPECT_EQ(1024, counter(_metadata, "thrash_pages"));
}

/* Who is written to all the time is let be, until that is over. */
TEST_F(events, thrash)
{
	long refused = counter(_metadata, "merge/refused_thrash");

	ASSERT_EQ(0, write_text(KSM_EXT_SYSFS "thrash_pages", "1"));
	attach(_metadata, self, self->skel->maps.merging);
	ASSERT_TRUE(WAIT_FOR(counter(_metadata, "aliases") == 2 * NPAGES));
	EXPECT_EQ(refused, counter(_metadata, "merge/refused_thrash"));

	/* 8 pages now, 1 after three half-lives */
	ASSERT_EQ(SIZE, pwrite(self->b.fd, self->b.want, SIZE, 0));
	ASSERT_EQ(0, fsync(self->b.fd));
	EXPECT_TRUE(WAIT_FOR(counter(_metadata, "merge/refused_thrash") >
			     refused));
	ask(_metadata, self, &self->b, 0);
	EXPECT_EQ(THRASH, self->skel->bss->info.refusal);
	EXPECT_GE(NPAGES, counter(_metadata, "aliases"));
	/* Who calls a program knows why. */
	EXPECT_EQ(1, merge_pages(_metadata, &self->a, 0, &self->b, 0, 1));
	EXPECT_TRUE(WAIT_FOR(counter(_metadata, "aliases") == 2 * NPAGES));

	/* No limit, no waiting */
	ASSERT_EQ(0, write_text(KSM_EXT_SYSFS "thrash_pages", "0"));
	refused = counter(_metadata, "merge/refused_thrash");
	ASSERT_EQ(SIZE, pwrite(self->b.fd, self->b.want, SIZE, 0));
	ASSERT_EQ(0, fsync(self->b.fd));
	EXPECT_TRUE(WAIT_FOR(counter(_metadata, "aliases") == 2 * NPAGES));
	EXPECT_EQ(refused, counter(_metadata, "merge/refused_thrash"));
	check_file(&self->b);
}

/* While nobody listens there is room for so many notes, and for no more. */
TEST_F(events, overflow)
{
	const size_t nr = NBREAKS + 30, size = 2 * nr * PAGE;
	long lost = counter(_metadata, "events_lost");
	struct file c, d;

	file_create(_metadata, &c, self->dir, "c", size, 3);
	file_create(_metadata, &d, self->dir, "d", size, 3);
	set_listed(_metadata, self->skel, &c, 1);
	set_listed(_metadata, self->skel, &d, 1);
	attach(_metadata, self, self->skel->maps.listening);
	ASSERT_EQ(2 * nr, merge_pages(_metadata, &c, 0, &d, 0, 2 * nr));

	/* It could be told of all of them, were it to run. */
	ASSERT_EQ(0, write_text(KSM_EXT_SYSFS "run", "0"));
	for (size_t i = 0; i < nr; i++) {
		ASSERT_EQ(1, pwrite(d.fd, "x", 1, 2 * i * PAGE));
		model_write(_metadata, &d, 2 * i * PAGE, "x", 1);
	}
	EXPECT_EQ(lost + nr - NBREAKS, counter(_metadata, "events_lost"));
	EXPECT_EQ(0, self->skel->bss->broken_pages);
	check_totals(2 * 2 * nr - nr);

	ASSERT_EQ(0, write_text(KSM_EXT_SYSFS "run", "1"));
	EXPECT_TRUE(WAIT_FOR(self->skel->bss->broken_pages >= NBREAKS));
	ASSERT_EQ(1, pwrite(d.fd, "x", 1, PAGE));
	model_write(_metadata, &d, PAGE, "x", 1);
	EXPECT_TRUE(WAIT_FOR(self->skel->bss->broken_pages == NBREAKS + 1));
	EXPECT_EQ(lost + nr - NBREAKS, counter(_metadata, "events_lost"));
	check_file(&c);
	check_file(&d);
	file_close(&c);
	file_close(&d);
}

int main(int argc, char **argv)
{
	/* Its programs call the verbs; as a policy it stays away. */
	manual_load();
	return test_harness_run(argc, argv);
}
