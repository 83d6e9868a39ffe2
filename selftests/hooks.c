// SPDX-License-Identifier: GPL-2.0
/*
 * Places of the kernel that break.c and merge.c reach only by chance, each by
 * a test of its own: two files A and B share all their pages, and somebody
 * comes along who could take them for something else.
 */
#include <glob.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/swap.h>
#include <linux/fscrypt.h>
#include <linux/fsverity.h>
#include <linux/futex.h>
#include <linux/perf_event.h>

#include "ksm_ext_test.h"
#include "../../../mm/gup_test.h"	/* of the kernel tree */

#define NPAGES	8
#define SIZE	(NPAGES * PAGE)
#define HIT	2

FIXTURE(hooks) {
	char dir[MAX_PATH];
	struct file a, b;
	unsigned char *junk;	/* a page of bytes that no file has */
};

FIXTURE_SETUP(hooks)
{
	test_begin(_metadata, self->dir);
	self->junk = page_buffer(_metadata, PAGE);
	fill(self->junk, PAGE, 99);
	file_create(_metadata, &self->a, self->dir, "a", SIZE, 1);
	file_create(_metadata, &self->b, self->dir, "b", SIZE, 1);
	merge_all(&self->a, &self->b);
	check_totals(2 * NPAGES);
}

FIXTURE_TEARDOWN(hooks)
{
	file_close(&self->a);
	file_close(&self->b);
	free(self->junk);
	test_end(_metadata, self->dir);
}

/* Both have the right bytes and still share all pages, as do @others. */
#define check_untouched(others)						\
	do {								\
		check_file(&self->a);					\
		check_file(&self->b);					\
		for (size_t i = 0; i < NPAGES; i++)			\
			EXPECT_SHARED(&self->a, i, &self->b, i);	\
		check_totals(2 * NPAGES + (others));			\
	} while (0)

/* ---- invalidation ---- */

/* Dropping caches spares what is mapped, shared or not. */
TEST_F(hooks, fadvise_mapped)
{
	struct file *b = &self->b;
	unsigned char *map = file_map(_metadata, b, PROT_READ, MAP_SHARED);

	touch(map, SIZE);
	drop_file(_metadata, b);
	EXPECT_EQ(NPAGES, resident(_metadata, b));
	check_map(b, map);
	check_untouched(0);
	ASSERT_EQ(0, write_text("/proc/sys/vm/drop_caches", "1"));
	EXPECT_EQ(NPAGES, resident(_metadata, b));
	check_map(b, map);
	EXPECT_COUNTER("aliases", NPAGES);
	file_unmap(b, map);
}

/*
 * The shrinker of inodes begins with those that have no pages.  One shared page
 * of a small file stands where otherwise only shadows of reclaim can stand.
 */
TEST_F(hooks, inode_shrinker)
{
	struct file c, d;

	file_create(_metadata, &c, self->dir, "c", PAGE, 3);
	file_create(_metadata, &d, self->dir, "d", PAGE, 3);
	merge_all(&c, &d);
	close(c.fd);
	close(d.fd);
	sync();
	for (int i = 0; i < 5; i++)
		ASSERT_EQ(0, write_text("/proc/sys/vm/drop_caches", "2"));
	check_totals(2 * NPAGES + 2);
	c.fd = open(c.path, O_RDWR);
	d.fd = open(d.path, O_RDWR);
	ASSERT_LE(0, c.fd);
	ASSERT_LE(0, d.fd);
	EXPECT_EQ(1, resident(_metadata, &d));
	EXPECT_SHARED(&c, 0, &d, 0);
	check_file(&c);
	check_file(&d);
	file_close(&c);
	file_close(&d);
}

/* One that has lost its pages to reclaim, and is not open, can go. */
TEST_F(hooks, inode_of_reclaimed)
{
	char group[MAX_PATH];
	struct file c, d;
	long before;

	SKIP_IF_CONTROL();
	before = counter(_metadata, "files_known");
	cgroup_new(_metadata, group, "hooks");
	ASSERT_EQ(0, cgroup_write(group, "cgroup.procs", "0"));
	file_create(_metadata, &c, self->dir, "c", PAGE, 3);
	file_create(_metadata, &d, self->dir, "d", PAGE, 3);
	ASSERT_EQ(0, cgroup_write(CGROUP, "cgroup.procs", "0"));
	merge_all(&c, &d);
	file_close(&c);
	file_close(&d);
	sync();
	/* Their names go; the page keeps the inodes. */
	for (int i = 0; i < 5; i++)
		ASSERT_EQ(0, write_text("/proc/sys/vm/drop_caches", "2"));
	check_totals(2 * NPAGES + 2);
	for (int i = 0; i < MAX_TRIES &&
	     counter(_metadata, "aliases") > 2 * NPAGES; i++) {
		drain_lru();
		cgroup_write(group, "memory.reclaim", "4M");
	}
	check_totals(2 * NPAGES);
	for (int i = 0; i < MAX_TRIES &&
	     counter(_metadata, "files_known") > before; i++)
		ASSERT_EQ(0, write_text("/proc/sys/vm/drop_caches", "2"));
	/* Those of tests before may go as well. */
	EXPECT_GE(before, counter(_metadata, "files_known"));
	EXPECT_EQ(0, rmdir(group));
}

/* ---- shared pages count as cached ---- */

/* In the page cache or, unlike what mincore(2) says, on their way there. */
static size_t cached(struct __test_metadata *_metadata, const struct file *f)
{
	struct manual_args args = {};

	ASSERT_EQ(0, find_file(_metadata, f, &args));
	return args.nr_cached;
}

TEST_F(hooks, nr_cached)
{
	struct file *b = &self->b;

	SKIP_IF_CONTROL();
	EXPECT_EQ(NPAGES, cached(_metadata, b));
	ASSERT_EQ(PAGE, pwrite(b->fd, self->junk, PAGE, HIT * PAGE));
	model_write(_metadata, b, HIT * PAGE, self->junk, PAGE);
	EXPECT_EQ(NPAGES, cached(_metadata, b));
	drop_file(_metadata, b);
	EXPECT_EQ(0, resident(_metadata, b));
	read_to_cache(_metadata, b);
	EXPECT_EQ(NPAGES, cached(_metadata, b));
	check_file(b);
}

static void read_byte(struct __test_metadata *_metadata, const struct file *f,
		      size_t page)
{
	int fd = open(f->path, O_RDONLY);
	char byte;

	ASSERT_LE(0, fd);
	ASSERT_EQ(1, pread(fd, &byte, 1, page * PAGE));
	close(fd);
}

/*
 * Twins C and D, of which D has only pages @first to before @end in memory,
 * brought in one by one and shared with C.
 */
static void shared_stretch(struct __test_metadata *_metadata, const char *dir,
			   struct file *c, struct file *d, size_t first,
			   size_t end)
{
	const size_t size = 128 * PAGE;
	char byte;
	int fd;

	file_create(_metadata, c, dir, "c", size, 3);
	file_create(_metadata, d, dir, "d", size, 3);
	drop_file(_metadata, d);
	fd = open(d->path, O_RDONLY);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM));
	for (size_t i = first; i < end; i++) {
		ASSERT_EQ(1, pread(fd, &byte, 1, i * PAGE));
	}
	close(fd);
	ASSERT_EQ(end - first, merge_pages(_metadata, c, first, d, first,
					   end - first));
	ASSERT_EQ(end - first, cached(_metadata, d));
}

/* Pages in front of the one that is missing are traces of a stream. */
TEST_F(hooks, readahead_before)
{
	struct file c, d;

	SKIP_IF_CONTROL();
	shared_stretch(_metadata, self->dir, &c, &d, 40, 56);
	read_byte(_metadata, &d, 56);
	EXPECT_LT(16 + 8, cached(_metadata, &d));
	check_file(&d);
	file_close(&c);
	file_close(&d);
}

/* A stream that comes upon cached pages reads ahead of them, behind these. */
TEST_F(hooks, readahead_behind)
{
	struct file c, d;
	size_t before;
	char buf[4 * PAGE];
	int fd;

	SKIP_IF_CONTROL();
	shared_stretch(_metadata, self->dir, &c, &d, 8, 24);
	/* Four pages from the start let the kernel read eight ... */
	fd = open(d.path, O_RDONLY);
	ASSERT_LE(0, fd);
	ASSERT_EQ(4 * PAGE, pread(fd, buf, 4 * PAGE, 0));
	close(fd);
	before = cached(_metadata, &d);
	ASSERT_EQ(24, before);
	/* ... and the fifth carries the mark to go on. */
	read_byte(_metadata, &d, 4);
	EXPECT_LT(before + 8, cached(_metadata, &d));
	check_file(&d);
	file_close(&c);
	file_close(&d);
}

/*
 * A read fault reads ahead on both sides of the page; what is shared there is
 * not read again, be it by a small folio between large ones.
 */
TEST_F(hooks, readahead_around)
{
	const size_t nr = 64, miss = 21;
	struct file c, d;
	void *map;

	file_create(_metadata, &c, self->dir, "c", nr * PAGE, 3);
	file_create(_metadata, &d, self->dir, "d", nr * PAGE, 3);
	merge_all(&c, &d);
	ASSERT_EQ(0, posix_fadvise(d.fd, miss * PAGE, PAGE,
				   POSIX_FADV_DONTNEED));
	map = file_map(_metadata, &d, PROT_READ, MAP_SHARED);
	touch(map + miss * PAGE, 1);
	file_unmap(&d, map);
	for (size_t i = 0; i < nr; i++) {
		if (i != miss)
			EXPECT_SHARED(&c, i, &d, i);
	}
	check_totals(2 * NPAGES + 2 * nr - 1);
	check_file(&d);
	file_close(&c);
	file_close(&d);
}

/* ---- reading ---- */

/* The virtio port of that name, or a negative number. */
static int open_port(const char *want)
{
	char path[MAX_PATH], name[16];
	glob_t ports;
	int fd = -1;

	glob("/sys/class/virtio-ports/*", 0, NULL, &ports);
	for (size_t i = 0; i < ports.gl_pathc && fd < 0; i++) {
		snprintf(path, MAX_PATH, "%s/name", ports.gl_pathv[i]);
		if (read_text(path, name, sizeof(name)) || strcmp(name, want))
			continue;
		snprintf(path, MAX_PATH, "/dev%s",
			 strrchr(ports.gl_pathv[i], '/'));
		fd = open(path, O_WRONLY);
	}
	globfree(&ports);
	return fd;
}

/* Who takes a page out of a pipe, and out of its file, gets a copy. */
TEST_F(hooks, splice_steal)
{
	off_t off = HIT * PAGE;
	int pipes[2], fd;

	fd = open_port("sink");
	if (fd < 0)
		SKIP(return, "this machine has no virtio port named sink");
	ASSERT_EQ(0, pipe(pipes));
	ASSERT_EQ(PAGE, splice(self->b.fd, &off, pipes[1], NULL, PAGE, 0));
	ASSERT_EQ(PAGE, splice(pipes[0], NULL, fd, NULL, PAGE,
			       SPLICE_F_MOVE));
	close(pipes[0]);
	close(pipes[1]);
	close(fd);
	check_untouched(0);
}

/* What somebody holds does not change when it is no longer shared. */
TEST_F(hooks, held_by_pipe)
{
	off_t off = HIT * PAGE;
	unsigned char buf[PAGE];
	int pipes[2];

	ASSERT_EQ(0, pipe(pipes));
	ASSERT_EQ(PAGE, splice(self->b.fd, &off, pipes[1], NULL, PAGE, 0));
	/* B leaves; A is alone and writes. */
	ASSERT_EQ(0, ftruncate(self->b.fd, 0));
	model_resize(_metadata, &self->b, 0);
	check_totals(NPAGES);
	ASSERT_EQ(PAGE, pwrite(self->a.fd, self->junk, PAGE, HIT * PAGE));
	ASSERT_EQ(PAGE, read(pipes[0], buf, PAGE));
	EXPECT_EQ(0, memcmp(buf, self->a.want + HIT * PAGE, PAGE)) {
		TH_LOG("the pipe has what was written to the other file");
	}
	model_write(_metadata, &self->a, HIT * PAGE, self->junk, PAGE);
	check_file(&self->a);
	close(pipes[0]);
	close(pipes[1]);
}

/* The build id that perf finds in the page cache for a mapping of @f. */
static void perf_build_id(struct __test_metadata *_metadata,
			  const struct file *f, unsigned char *id)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_SOFTWARE,
		.size = sizeof(attr),
		.config = PERF_COUNT_SW_DUMMY,
		.mmap = 1,
		.mmap2 = 1,
		.build_id = 1,
	};
	struct perf_event_mmap_page *ring;
	struct {
		struct perf_event_header header;
		__u32 pid, tid;
		__u64 addr, len, pgoff;
		__u8 build_id_size, reserved[3];
		__u8 build_id[20];
	} *mmap2;
	void *map;
	int fd;

	fd = syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0);
	ASSERT_LE(0, fd) TH_LOG("perf_event_open: %s", strerror(errno));
	ring = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, ring);
	map = file_map(_metadata, f, PROT_READ | PROT_EXEC, MAP_PRIVATE);
	ASSERT_NE(0, __atomic_load_n(&ring->data_head, __ATOMIC_ACQUIRE));
	mmap2 = (void *)((char *)ring + ring->data_offset);
	ASSERT_EQ(PERF_RECORD_MMAP2, mmap2->header.type);
	EXPECT_TRUE(mmap2->header.misc & PERF_RECORD_MISC_MMAP_BUILD_ID) {
		TH_LOG("no build id found in %s", f->path);
	}
	memcpy(id, mmap2->build_id, 20);
	file_unmap(f, map);
	munmap(ring, 2 * PAGE);
	close(fd);
}

/* Two copies of this program. */
TEST_F(hooks, build_id)
{
	unsigned char plain[20], shared[20];
	struct file files[2];

	for (int i = 0; i < 2; i++)
		file_copy(_metadata, &files[i], self->dir, i ? "exe" : "twin",
			  "/proc/self/exe");
	perf_build_id(_metadata, &files[1], plain);
	ASSERT_EQ(1, merge_pages(_metadata, &files[0], 0, &files[1], 0, 1));
	perf_build_id(_metadata, &files[1], shared);
	EXPECT_EQ(0, memcmp(plain, shared, sizeof(plain)));
	EXPECT_SHARED(&files[0], 0, &files[1], 0);
	for (int i = 0; i < 2; i++) {
		check_file(&files[i]);
		file_close(&files[i]);
	}
}

/* ---- mappings ---- */

/*
 * Where no page table is yet, fault-around brings one along.  It must not be
 * put off by the place that a shared page has elsewhere.
 */
TEST_F(hooks, fault_around_table)
{
	const size_t huge = 512 * PAGE, nr = 16;
	unsigned char *area, *map;
	size_t mapped = 0;
	struct file c, d;

	file_create(_metadata, &c, self->dir, "c", nr * PAGE, 3);
	file_create(_metadata, &d, self->dir, "d", nr * PAGE, 3);
	merge_all(&c, &d);
	area = mmap(NULL, 3 * huge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS,
		    -1, 0);
	ASSERT_NE(MAP_FAILED, area);
	map = (unsigned char *)(((uintptr_t)area + huge - 1) & ~(huge - 1));
	ASSERT_EQ(map, mmap(map, nr * PAGE, PROT_READ, MAP_SHARED | MAP_FIXED,
			    d.fd, 0));
	touch(map + 5 * PAGE, 1);
	for (size_t i = 0; i < nr; i++)
		mapped += pfn_of(map + i * PAGE) != 0;
	EXPECT_EQ(nr, mapped);
	check_map(&d, map);
	munmap(area, 3 * huge);
	file_close(&c);
	file_close(&d);
}

/* Pages that go from one shared page to an equal one are mapped all along. */
TEST_F(hooks, two_roots_mapped)
{
	struct file *a = &self->a, c, d;
	unsigned char *map[2];

	file_create(_metadata, &c, self->dir, "c", SIZE, 1);
	file_create(_metadata, &d, self->dir, "d", SIZE, 1);
	merge_all(&c, &d);
	map[0] = file_map(_metadata, &c, PROT_READ | PROT_WRITE, MAP_SHARED);
	map[1] = file_map(_metadata, &d, PROT_READ | PROT_WRITE, MAP_SHARED);
	touch(map[0], SIZE);
	touch(map[1], SIZE);
	merge_all(a, &c);
	check_map(&c, map[0]);
	check_map(&d, map[1]);
	for (size_t i = 0; i < NPAGES && !control; i++) {
		unsigned long pfn = pfn_of(map[0] + i * PAGE);

		EXPECT_EQ(pfn, pfn_of(map[1] + i * PAGE));
	}
	ASSERT_EQ(PAGE, pwrite(d.fd, self->junk, PAGE, HIT * PAGE));
	model_write(_metadata, &d, HIT * PAGE, self->junk, PAGE);
	memcpy(map[0] + HIT * PAGE, self->junk, 10);
	model_write(_metadata, &c, HIT * PAGE, self->junk, 10);
	check_map(&c, map[0]);
	check_map(&d, map[1]);
	file_unmap(&c, map[0]);
	file_unmap(&d, map[1]);
	file_close(&c);
	file_close(&d);
	check_untouched(2 * NPAGES - 2);
}

static bool sleeps(struct __test_metadata *_metadata, pid_t pid)
{
	char path[MAX_PATH], text[512];

	snprintf(path, MAX_PATH, "/proc/%d/stat", pid);
	ASSERT_EQ(0, read_text(path, text, sizeof(text)));
	return strrchr(text, ')')[2] == 'S';
}

/* Who waits may only read the page, who wakes may write: both mean one page. */
TEST_F(hooks, futex)
{
	const struct timespec limit = { .tv_sec = 10 };
	const size_t at = HIT * PAGE / sizeof(__u32);
	__u32 *reads, *writes;
	int woken;
	pid_t pid;

	reads = file_map(_metadata, &self->b, PROT_READ, MAP_SHARED);
	writes = file_map(_metadata, &self->b, PROT_READ | PROT_WRITE,
			  MAP_SHARED);
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		syscall(SYS_futex, reads + at, FUTEX_WAIT, reads[at], &limit,
			NULL, 0);
		_exit(0);
	}
	while (!sleeps(_metadata, pid))
		sched_yield();
	woken = syscall(SYS_futex, writes + at, FUTEX_WAKE, 1, NULL, NULL, 0);
	EXPECT_EQ(1, woken);
	if (!woken)
		kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	check_file(&self->a);
	check_file(&self->b);
	file_unmap(&self->b, reads);
	file_unmap(&self->b, writes);
}

/* Some flags of a page are facts about the file that come back with it. */
TEST_F(hooks, page_flags)
{
	/* KPF_OWNER_2 (mapped to disk), KPF_OWNER_PRIVATE (checked) */
	const __u64 mask = 1ULL << 34 | 1ULL << 37;
	struct manual_args args = { .dst_index = HIT, .nr = 1 };
	struct file *b = &self->b;
	__u64 flags[2];
	int fd;

	SKIP_IF_CONTROL();
	fd = open("/proc/kpageflags", O_RDONLY);
	ASSERT_LE(0, fd);
	drop_file(_metadata, b);
	read_to_cache(_metadata, b);
	for (int i = 0; i < 2; i++) {
		unsigned char *map = file_map(_metadata, b, PROT_READ,
					      MAP_SHARED);
		unsigned long pfn;

		touch(map, SIZE);
		pfn = pfn_of(map + HIT * PAGE);
		ASSERT_NE(0, pfn);
		ASSERT_EQ(sizeof(flags[i]), pread(fd, &flags[i],
						  sizeof(flags[i]),
						  pfn * sizeof(flags[i])));
		file_unmap(b, map);
		if (i)
			break;
		merge_all(&self->a, b);
		args.dst = file_id(_metadata, b);
		ASSERT_EQ(1, manual_call(manual->progs.manual_unmerge, &args));
	}
	if (fs_magic(self->dir) == EXT4_SUPER_MAGIC) {
		EXPECT_NE(0, flags[0] & mask);
	}
	EXPECT_EQ(flags[0] & mask, flags[1] & mask);
	close(fd);
}

/* ---- files that go away ---- */

/* An inode in memory that is not known is no matter; the opposite is. */
TEST_F(hooks, forgotten)
{
	long before, now = 0;
	struct file c;

	SKIP_IF_CONTROL();
	file_id(_metadata, &self->a);
	before = counter(_metadata, "files_known");
	file_create(_metadata, &c, self->dir, "c", SIZE, 3);
	file_id(_metadata, &c);
	ASSERT_EQ(0, unlink(c.path));
	file_close(&c);
	for (int i = 0; i < MAX_TRIES; i++) {
		/* Those of tests before may go as well. */
		now = counter(_metadata, "files_known");
		if (now <= before)
			break;
		sync();
		usleep(20000);
	}
	EXPECT_GE(before, now);
}

/* ---- who may merge ---- */

/* Each shared page has its domain, whatever its files are said to be in now. */
TEST_F(hooks, domains_of_two_roots)
{
	struct file c, d;

	SKIP_IF_CONTROL();
	file_create(_metadata, &c, self->dir, "c", SIZE, 1);
	file_create(_metadata, &d, self->dir, "d", SIZE, 1);
	set_domain(_metadata, &c, 9);
	set_domain(_metadata, &d, 9);
	merge_all(&c, &d);
	set_domain(_metadata, &c, 1);
	EXPECT_EQ(-EXDEV, merge_pages(_metadata, &self->a, HIT, &c, HIT, 1));
	EXPECT_EQ(-EXDEV, merge_pages(_metadata, &c, HIT, &self->a, HIT, 1));
	EXPECT_APART(&self->a, HIT, &c, HIT);
	file_close(&c);
	file_close(&d);
	check_untouched(2 * NPAGES);
}

static void expect_unknown(struct __test_metadata *_metadata, const char *dir)
{
	struct manual_args args = {};
	struct file c;

	file_create(_metadata, &c, dir, "c", SIZE, 1);
	EXPECT_EQ(-ENOENT, find_file(_metadata, &c, &args));
	file_close(&c);
}

/* Much like ext4, but not on the list. */
TEST_F(hooks, other_fs)
{
	char mnt[MAX_PATH];

	SKIP_IF_CONTROL();
	mount_new(_metadata, self->dir, mnt, "mkfs.ext2 -qF -b 4096",
		  "-t ext2");
	expect_unknown(_metadata, mnt);
	ASSERT_EQ(0, umount(mnt));
}

/* Blocks of four pages, which a file system wants in folios of that size. */
TEST_F(hooks, large_blocks)
{
	char mnt[MAX_PATH];

	SKIP_IF_CONTROL();
	mount_new(_metadata, self->dir, mnt, "mkfs.xfs -qf -b size=16k",
		  "-t xfs");
	expect_unknown(_metadata, mnt);
	ASSERT_EQ(0, umount(mnt));
}

/* On btrfs one is in the page cache, with the methods of a file. */
TEST_F(hooks, symlink)
{
	char path[MAX_PATH], target[200], seen[200];
	struct manual_args args = {};
	struct file link;

	SKIP_IF_CONTROL();
	ASSERT_GT(MAX_PATH, snprintf(path, MAX_PATH, "%s/link", self->dir));
	memset(target, 'x', sizeof(target) - 1);
	target[sizeof(target) - 1] = '\0';
	ASSERT_EQ(0, symlink(target, path));
	sync();
	ASSERT_EQ(0, write_text("/proc/sys/vm/drop_caches", "3"));
	ASSERT_EQ(sizeof(target) - 1, readlink(path, seen, sizeof(seen)));
	link.fd = open(path, O_PATH | O_NOFOLLOW);
	ASSERT_LE(0, link.fd);
	EXPECT_EQ(-ENOENT, find_file(_metadata, &link, &args));
	close(link.fd);
}

TEST_F(hooks, encrypted)
{
	struct {
		struct fscrypt_add_key_arg arg;
		unsigned char raw[64];
	} key = {
		.arg.key_spec.type = FSCRYPT_KEY_SPEC_TYPE_IDENTIFIER,
		.arg.raw_size = 64,
	};
	struct fscrypt_policy_v2 policy = {
		.version = FSCRYPT_POLICY_V2,
		.contents_encryption_mode = FSCRYPT_MODE_AES_256_XTS,
		.filenames_encryption_mode = FSCRYPT_MODE_AES_256_CTS,
		.flags = FSCRYPT_POLICY_FLAGS_PAD_32,
	};
	char mnt[MAX_PATH], dir[MAX_PATH + 8];
	int fd;

	SKIP_IF_CONTROL();
	mount_new(_metadata, self->dir, mnt, "mkfs.ext4 -qF -b 4096 -O encrypt",
		  "");
	fill(key.raw, sizeof(key.raw), 5);
	snprintf(dir, sizeof(dir), "%s/secret", mnt);
	ASSERT_EQ(0, mkdir(dir, 0755));
	fd = open(dir, O_RDONLY);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, ioctl(fd, FS_IOC_ADD_ENCRYPTION_KEY, &key)) {
		TH_LOG("%s (CONFIG_FS_ENCRYPTION?)", strerror(errno));
	}
	memcpy(policy.master_key_identifier, key.arg.key_spec.u.identifier,
	       FSCRYPT_KEY_IDENTIFIER_SIZE);
	ASSERT_EQ(0, ioctl(fd, FS_IOC_SET_ENCRYPTION_POLICY, &policy)) {
		TH_LOG("%s", strerror(errno));
	}
	close(fd);
	expect_unknown(_metadata, dir);
	ASSERT_EQ(0, umount(mnt));
}

/* Known as a plain file, and only then made one that is verified. */
TEST_F(hooks, verity)
{
	struct fsverity_enable_arg arg = {
		.version = 1,
		.hash_algorithm = FS_VERITY_HASH_ALG_SHA256,
		.block_size = PAGE,
	};
	char mnt[MAX_PATH];
	struct file c, d;

	SKIP_IF_CONTROL();
	mount_new(_metadata, self->dir, mnt, "mkfs.ext4 -qF -b 4096 -O verity",
		  "");
	file_create(_metadata, &c, mnt, "c", SIZE, 3);
	file_create(_metadata, &d, mnt, "d", SIZE, 3);
	file_id(_metadata, &d);
	close(d.fd);
	d.fd = open(d.path, O_RDONLY);
	ASSERT_LE(0, d.fd);
	ASSERT_EQ(0, ioctl(d.fd, FS_IOC_ENABLE_VERITY, &arg)) {
		TH_LOG("%s (CONFIG_FS_VERITY?)", strerror(errno));
	}
	read_to_cache(_metadata, &d);
	EXPECT_EQ(-EOPNOTSUPP, try_merge(_metadata, &c, HIT, &d, HIT, 1));
	check_file(&d);
	file_close(&c);
	file_close(&d);
	ASSERT_EQ(0, umount(mnt));
}

/* ---- why pages stopped being shared ---- */

static const char *const reasons[] = {
	"write_fault", "write", "truncate", "direct_io", "invalidate",
	"unshare", "reclaim", "replaced", "unmerge",
};

#define NREASONS ARRAY_SIZE(reasons)

static void count_reasons(struct __test_metadata *_metadata, long *counts)
{
	char name[64];

	for (size_t i = 0; i < NREASONS; i++) {
		snprintf(name, sizeof(name), "break/%s", reasons[i]);
		counts[i] = counter(_metadata, name);
	}
}

/* One thing that is done to B, page HIT of it if to one page. */
FIXTURE(reasons) {
	char dir[MAX_PATH];
	struct file a, b;
	long before[NREASONS];
	long told[NREASONS];		/* the policy, by then */
};

/* Of breaks the policy is told before its next scan. */
static void what_policy_knows(struct __test_metadata *_metadata, long *told)
{
	wait_for_scans(_metadata);
	for (size_t i = 0; i < NREASONS; i++)
		told[i] = manual->bss->broken_pages[i];
}

FIXTURE_SETUP(reasons)
{
	test_begin(_metadata, self->dir);
	file_create(_metadata, &self->a, self->dir, "a", SIZE, 1);
	file_create(_metadata, &self->b, self->dir, "b", SIZE, 1);
	merge_all(&self->a, &self->b);
	if (control)
		return;
	count_reasons(_metadata, self->before);
	what_policy_knows(_metadata, self->told);
}

FIXTURE_TEARDOWN(reasons)
{
	check_file(&self->a);
	check_file(&self->b);
	file_close(&self->a);
	file_close(&self->b);
	test_end(_metadata, self->dir);
}

/* So many pages since the beginning, for this reason and for no other. */
static void expect_reason(struct __test_metadata *_metadata,
			  const FIXTURE_DATA(reasons) *self,
			  const char *reason, long nr)
{
	long after[NREASONS], told[NREASONS];

	if (control)
		return;
	count_reasons(_metadata, after);
	what_policy_knows(_metadata, told);
	for (size_t i = 0; i < NREASONS; i++) {
		EXPECT_EQ(strcmp(reasons[i], reason) ? 0 : nr,
			  after[i] - self->before[i]) {
			TH_LOG("break/%s", reasons[i]);
		}
		EXPECT_EQ(strcmp(reasons[i], reason) ? 0 : nr,
			  told[i] - self->told[i]) {
			TH_LOG("the policy, of %s", reasons[i]);
		}
	}
}

TEST_F(reasons, write)
{
	ASSERT_EQ(1, pwrite(self->b.fd, "x", 1, HIT * PAGE + 7));
	model_write(_metadata, &self->b, HIT * PAGE + 7, "x", 1);
	expect_reason(_metadata, self, "write", 1);
}

TEST_F(reasons, write_fault)
{
	unsigned char *map = file_map(_metadata, &self->b,
				      PROT_READ | PROT_WRITE, MAP_SHARED);

	map[HIT * PAGE] = 'x';
	model_write(_metadata, &self->b, HIT * PAGE, "x", 1);
	touch(map, SIZE);
	map[(HIT + 1) * PAGE] = 'x';
	model_write(_metadata, &self->b, (HIT + 1) * PAGE, "x", 1);
	expect_reason(_metadata, self, "write_fault", 2);
	file_unmap(&self->b, map);
}

/* The page that is cut through, too. */
TEST_F(reasons, truncate)
{
	size_t size = HIT * PAGE + 100;

	if (fs_magic(self->dir) == XFS_SUPER_MAGIC)
		SKIP(return, "xfs zeroes the rest of the page by a write");
	ASSERT_EQ(0, ftruncate(self->b.fd, size));
	model_resize(_metadata, &self->b, size);
	expect_reason(_metadata, self, "truncate", NPAGES - HIT);
}

/* Direct writes may go through the page cache: of btrfs for the checksums. */
TEST_F(reasons, direct_io)
{
	unsigned char *buf = page_buffer(_metadata, PAGE);
	int fd = open(self->b.path, O_RDWR | O_DIRECT);
	struct statx st;

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &st));
	if ((st.stx_mask & STATX_DIOALIGN) && st.stx_dio_offset_align) {
		fill(buf, PAGE, 99);
		ASSERT_EQ(PAGE, pwrite(fd, buf, PAGE, HIT * PAGE));
		model_write(_metadata, &self->b, HIT * PAGE, buf, PAGE);
		expect_reason(_metadata, self, "direct_io", 1);
	}
	close(fd);
	free(buf);
}

TEST_F(reasons, invalidate)
{
	drop_file(_metadata, &self->b);
	expect_reason(_metadata, self, "invalidate", NPAGES);
}

TEST_F(reasons, unshare)
{
	struct pin_longterm_test pin = { .size = PAGE };
	unsigned char *map;
	int fd;

	fd = open("/sys/kernel/debug/gup_test", O_RDWR);
	ASSERT_LE(0, fd) TH_LOG("no gup_test in debugfs (CONFIG_GUP_TEST?)");
	map = file_map(_metadata, &self->b, PROT_READ, MAP_SHARED);
	touch(map, SIZE);
	pin.addr = (uintptr_t)map + HIT * PAGE;
	ASSERT_EQ(0, ioctl(fd, PIN_LONGTERM_TEST_START, &pin));
	expect_reason(_metadata, self, "unshare", 1);
	ASSERT_EQ(0, ioctl(fd, PIN_LONGTERM_TEST_STOP));
	file_unmap(&self->b, map);
	close(fd);
}

/* The root goes, and with it all who share it. */
TEST_F(reasons, reclaim)
{
	unsigned char *map = file_map(_metadata, &self->b, PROT_READ,
				      MAP_SHARED);

	/* Whoever holds a page for a moment keeps it from being reclaimed. */
	for (int i = 0; i < MAX_TRIES && resident(_metadata, &self->b); i++) {
		drain_lru();
		touch(map, SIZE);
		ASSERT_EQ(0, madvise(map, SIZE, MADV_PAGEOUT));
	}
	EXPECT_EQ(0, resident(_metadata, &self->b));
	expect_reason(_metadata, self, "reclaim", 2 * NPAGES);
	file_unmap(&self->b, map);
}

/* It looks for a header on the first page, as who reads a page of a file. */
TEST_F(reasons, replaced)
{
	ASSERT_EQ(-1, swapon(self->b.path, 0));
	EXPECT_EQ(EINVAL, errno);
	expect_reason(_metadata, self, "replaced", 1);
}

TEST_F(reasons, unmerge)
{
	struct manual_args args = { .dst_index = HIT, .nr = 3 };

	SKIP_IF_CONTROL();
	args.dst = file_id(_metadata, &self->b);
	EXPECT_EQ(3, manual_call(manual->progs.manual_unmerge, &args));
	expect_reason(_metadata, self, "unmerge", 3);
}

MANUAL_TEST_MAIN
