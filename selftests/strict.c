// SPDX-License-Identifier: GPL-2.0
/*
 * Strict mode: do pages that were looked at end like merged ones, are shared
 * pages where nobody put them, and is everything given back?
 */
#include "ksm_ext_test.h"

#define NPAGES	8
#define TAIL	1000
#define SIZE	((NPAGES - 1) * PAGE + TAIL)
#define HIT	2

/* As in mm/ksm_ext/strict.c */
#define NR_FRAMES	1024

FIXTURE(strict) {
	char dir[MAX_PATH];
	struct file a, b, c;	/* a and b are twins, c is not */
};

FIXTURE_SETUP(strict)
{
	if (control)
		SKIP(return, "control run: nothing is merged");
	test_begin(_metadata, self->dir);
	set_strict(_metadata, true);
	file_create(_metadata, &self->a, self->dir, "a", SIZE, 1);
	file_create(_metadata, &self->b, self->dir, "b", SIZE, 1);
	file_create(_metadata, &self->c, self->dir, "c", SIZE, 2);
}

FIXTURE_TEARDOWN(strict)
{
	file_close(&self->a);
	file_close(&self->b);
	file_close(&self->c);
	test_end(_metadata, self->dir);
	set_strict(_metadata, strict);
}

static unsigned long pfn_of_page(struct __test_metadata *_metadata,
				 const struct file *f, size_t i)
{
	char *p = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, f->fd, i * PAGE);
	unsigned long pfn;

	ASSERT_NE(MAP_FAILED, p);
	touch(p, PAGE);
	pfn = pfn_of(p);
	munmap(p, PAGE);
	ASSERT_NE(0, pfn);
	return pfn;
}

/* How many pages of @f get a hash. */
static int hash_all(struct __test_metadata *_metadata, const struct file *f)
{
	struct manual_args args = { .nr = nr_pages(f) };

	drain_lru();
	args.dst = file_id(_metadata, f);
	return manual_call(manual->progs.manual_hash, &args);
}

/* Does writing to page @i of @f break an alias?  All must stay right. */
static bool write_breaks(struct __test_metadata *_metadata, struct file *f,
			 size_t i)
{
	long before = counter(_metadata, "break/write");
	unsigned char byte = ~f->want[i * PAGE];

	ASSERT_EQ(1, pwrite(f->fd, &byte, 1, i * PAGE));
	model_write(_metadata, f, i * PAGE, &byte, 1);
	return counter(_metadata, "break/write") == before + 1;
}

static void check_all(struct __test_metadata *_metadata,
		      FIXTURE_DATA(strict) *self)
{
	check_file(&self->a);
	check_file(&self->b);
	check_file(&self->c);
	check_disk(&self->a);
	check_disk(&self->b);
	check_disk(&self->c);
}

/* A shared page is neither of the two that it was made of. */
TEST_F(strict, fresh_frame)
{
	unsigned long a[NPAGES], b[NPAGES], root;

	for (size_t i = 0; i < NPAGES; i++) {
		a[i] = pfn_of_page(_metadata, &self->a, i);
		b[i] = pfn_of_page(_metadata, &self->b, i);
	}
	merge_all(&self->a, &self->b);
	check_totals(2 * NPAGES);
	EXPECT_COUNTER("pages_shared", NPAGES);
	EXPECT_COUNTER("pages_fake", 0);
	for (size_t i = 0; i < NPAGES; i++) {
		EXPECT_SHARED(&self->a, i, &self->b, i);
		root = pfn_of_page(_metadata, &self->a, i);
		EXPECT_NE(a[i], root);
		EXPECT_NE(b[i], root);
	}
	check_all(_metadata, self);
}

/* Nor does it stay where it was when one more joins. */
TEST_F(strict, frame_of_join)
{
	unsigned long before[NPAGES];
	struct file d;

	merge_all(&self->a, &self->b);
	for (size_t i = 0; i < NPAGES; i++)
		before[i] = pfn_of_page(_metadata, &self->a, i);
	file_create(_metadata, &d, self->dir, "d", SIZE, 1);
	merge_all(&self->a, &d);
	check_totals(3 * NPAGES);
	for (size_t i = 0; i < NPAGES; i++) {
		EXPECT_SHARED(&self->a, i, &d, i);
		EXPECT_SHARED(&self->b, i, &d, i);
		EXPECT_NE(before[i], pfn_of_page(_metadata, &d, i));
	}
	check_file(&d);
	check_all(_metadata, self);
	file_close(&d);
}

/* Everybody who has it mapped follows. */
TEST_F(strict, mapped)
{
	struct file *files[] = { &self->a, &self->b };
	unsigned char *map[2];

	for (int i = 0; i < 2; i++) {
		map[i] = file_map(_metadata, files[i], PROT_READ | PROT_WRITE,
				  MAP_SHARED);
		touch(map[i], SIZE);
	}
	merge_all(&self->a, &self->b);
	for (int i = 0; i < 2; i++)
		check_map(files[i], map[i]);
	for (int i = 0; i < 2; i++) {
		map[i][HIT * PAGE + i] ^= 0x55;
		files[i]->want[HIT * PAGE + i] ^= 0x55;
		check_map(&self->a, map[0]);
		check_map(&self->b, map[1]);
	}
	check_totals(2 * (NPAGES - 1));
	for (int i = 0; i < 2; i++)
		file_unmap(files[i], map[i]);
	check_all(_metadata, self);
}

/* Pages that get a hash look merged, though nothing is saved by that. */
TEST_F(strict, fake_by_hash)
{
	long faked = counter(_metadata, "merge/faked");
	unsigned long before = pfn_of_page(_metadata, &self->c, HIT);

	EXPECT_EQ(NPAGES, hash_all(_metadata, &self->c));
	EXPECT_COUNTER("pages_fake", NPAGES);
	EXPECT_EQ(faked + NPAGES, counter(_metadata, "merge/faked"));
	check_totals(0);
	EXPECT_COUNTER("pages_shared", 0);
	EXPECT_NE(before, pfn_of_page(_metadata, &self->c, HIT));

	/* once is enough */
	EXPECT_EQ(NPAGES, hash_all(_metadata, &self->c));
	EXPECT_EQ(faked + NPAGES, counter(_metadata, "merge/faked"));

	EXPECT_TRUE(write_breaks(_metadata, &self->c, HIT));
	EXPECT_COUNTER("pages_fake", NPAGES - 1);
	check_all(_metadata, self);
}

/* A comparison makes them look the same, whatever comes of it. */
TEST_F(strict, fake_by_merge)
{
	EXPECT_EQ(-EILSEQ, merge_pages(_metadata, &self->a, HIT,
				       &self->c, HIT, 1));
	EXPECT_COUNTER("pages_fake", 2);
	EXPECT_EQ(1, merge_pages(_metadata, &self->a, HIT, &self->b, HIT, 1));
	check_totals(2);
	EXPECT_COUNTER("pages_fake", 1);
	EXPECT_TRUE(write_breaks(_metadata, &self->c, HIT));
	EXPECT_TRUE(write_breaks(_metadata, &self->a, HIT));
	check_all(_metadata, self);
	EXPECT_TRUE(write_breaks(_metadata, &self->b, HIT));
	EXPECT_COUNTER("pages_fake", 0);
	check_totals(0);
	EXPECT_COUNTER("pages_shared", 0);
	check_all(_metadata, self);
}

/* Where a run ends does not show in its pages. */
TEST_F(strict, fake_by_run)
{
	EXPECT_EQ(-EILSEQ, merge_pages(_metadata, &self->a, 0,
				       &self->c, 0, NPAGES));
	EXPECT_COUNTER("pages_fake", 2 * NPAGES);
	check_totals(0);
	for (size_t i = 0; i < NPAGES; i++) {
		EXPECT_TRUE(write_breaks(_metadata, &self->a, i));
		EXPECT_TRUE(write_breaks(_metadata, &self->c, i));
	}
	EXPECT_COUNTER("pages_fake", 0);
	check_all(_metadata, self);
}

/* What nobody may merge now is not shown to who might do so later. */
TEST_F(strict, no_look)
{
	ASSERT_EQ(0, write_text(KSM_EXT_SYSFS "run", "0"));
	EXPECT_EQ(0, hash_all(_metadata, &self->c));
	ASSERT_EQ(0, write_text(KSM_EXT_SYSFS "run", "1"));
	EXPECT_COUNTER("pages_fake", 0);
	EXPECT_EQ(NPAGES, hash_all(_metadata, &self->c));
	EXPECT_COUNTER("pages_fake", NPAGES);
	check_all(_metadata, self);
}

/* The last one copies, as all others did. */
TEST_F(strict, last_alias)
{
	unsigned long root;

	merge_all(&self->a, &self->b);
	root = pfn_of_page(_metadata, &self->a, HIT);
	EXPECT_TRUE(write_breaks(_metadata, &self->a, HIT));
	EXPECT_NE(root, pfn_of_page(_metadata, &self->a, HIT));
	EXPECT_EQ(root, pfn_of_page(_metadata, &self->b, HIT));
	EXPECT_TRUE(write_breaks(_metadata, &self->b, HIT));
	EXPECT_NE(root, pfn_of_page(_metadata, &self->b, HIT));
	check_totals(2 * (NPAGES - 1));
	EXPECT_COUNTER("pages_shared", NPAGES - 1);

	/* Not because somebody who left lately is still being waited for */
	EXPECT_EQ(NPAGES, hash_all(_metadata, &self->c));
	root = pfn_of_page(_metadata, &self->c, HIT);
	EXPECT_TRUE(write_breaks(_metadata, &self->c, HIT));
	EXPECT_NE(root, pfn_of_page(_metadata, &self->c, HIT));
	check_all(_metadata, self);
}

/* Domains are kept apart: a page that was only looked at is in none yet. */
TEST_F(strict, domains)
{
	set_domain(_metadata, &self->b, 2);
	EXPECT_EQ(NPAGES, hash_all(_metadata, &self->a));
	EXPECT_EQ(-EXDEV, merge_pages(_metadata, &self->a, HIT,
				      &self->b, HIT, 1));
	check_totals(0);
	set_domain(_metadata, &self->b, 1);
	EXPECT_EQ(1, merge_pages(_metadata, &self->a, HIT, &self->b, HIT, 1));
	check_totals(2);
	/* A root that is shared is in one. */
	set_domain(_metadata, &self->a, 2);
	set_domain(_metadata, &self->b, 2);
	file_close(&self->c);
	file_create(_metadata, &self->c, self->dir, "d", SIZE, 1);
	set_domain(_metadata, &self->c, 2);
	EXPECT_EQ(-EXDEV, merge_pages(_metadata, &self->a, HIT,
				      &self->c, HIT, 1));
	check_totals(2);
	check_all(_metadata, self);
}

/* What somebody holds is neither looked at nor moved. */
TEST_F(strict, pinned)
{
	unsigned long pfn;
	int pipes[2];
	loff_t off = HIT * PAGE;
	char buf[PAGE];

	ASSERT_EQ(0, pipe(pipes));
	ASSERT_EQ(PAGE, splice(self->a.fd, &off, pipes[1], NULL, PAGE, 0));
	pfn = pfn_of_page(_metadata, &self->a, HIT);
	EXPECT_EQ(-EBUSY, merge_pages(_metadata, &self->a, HIT,
				      &self->b, HIT, 1));
	EXPECT_EQ(pfn, pfn_of_page(_metadata, &self->a, HIT));
	EXPECT_EQ(NPAGES - 1, hash_all(_metadata, &self->a));
	EXPECT_EQ(0, manual->bss->hashes[HIT]);
	ASSERT_EQ(PAGE, read(pipes[0], buf, PAGE));
	EXPECT_EQ(1, merge_pages(_metadata, &self->a, HIT,
				 &self->b, HIT, 1));

	/* The same for a page that is shared */
	off = HIT * PAGE;
	ASSERT_EQ(PAGE, splice(self->a.fd, &off, pipes[1], NULL, PAGE, 0));
	file_close(&self->c);
	file_create(_metadata, &self->c, self->dir, "d", SIZE, 1);
	EXPECT_EQ(-EBUSY, merge_pages(_metadata, &self->a, HIT,
				      &self->c, HIT, 1));
	check_totals(2);
	ASSERT_EQ(PAGE, read(pipes[0], buf, PAGE));
	EXPECT_EQ(0, memcmp(buf, self->a.want + HIT * PAGE, PAGE));
	EXPECT_EQ(1, merge_pages(_metadata, &self->a, HIT,
				 &self->c, HIT, 1));
	check_totals(3);
	close(pipes[0]);
	close(pipes[1]);
	check_all(_metadata, self);
}

/* Drops of the last alias, too, leave no trace, and nothing stays behind. */
TEST_F(strict, drops)
{
	EXPECT_EQ(NPAGES, hash_all(_metadata, &self->c));
	merge_all(&self->a, &self->b);
	ASSERT_EQ(0, ftruncate(self->c.fd, HIT * PAGE + 100));
	model_resize(_metadata, &self->c, HIT * PAGE + 100);
	ASSERT_EQ(0, ftruncate(self->a.fd, HIT * PAGE + 100));
	model_resize(_metadata, &self->a, HIT * PAGE + 100);
	check_all(_metadata, self);
	drop_file(_metadata, &self->a);
	drop_file(_metadata, &self->b);
	drop_file(_metadata, &self->c);
	check_totals(0);
	EXPECT_COUNTER("pages_fake", 0);
	check_all(_metadata, self);
}

/* More at a time than can wait to be freed */
TEST_F(strict, many)
{
	const size_t nr = 3 * NR_FRAMES;
	struct file d, e;

	file_create(_metadata, &d, self->dir, "d", nr * PAGE, 3);
	file_create(_metadata, &e, self->dir, "e", nr * PAGE, 3);
	merge_all(&d, &e);
	for (size_t i = 0; i < nr; i++) {
		ASSERT_TRUE(write_breaks(_metadata, &d, i)) {
			TH_LOG("page %zu", i);
		}
	}
	check_totals(nr);
	for (size_t i = 0; i < nr; i++) {
		ASSERT_TRUE(write_breaks(_metadata, &e, i)) {
			TH_LOG("page %zu", i);
		}
	}
	check_totals(0);
	check_file(&d);
	check_file(&e);
	file_close(&d);
	file_close(&e);
}

/* Without it, all is as it was; what it was about is unmerged. */
TEST_F(strict, off)
{
	unsigned long pfn;

	EXPECT_EQ(NPAGES, hash_all(_metadata, &self->c));
	merge_all(&self->a, &self->b);
	set_strict(_metadata, false);
	expect_nothing_shared(_metadata);
	EXPECT_COUNTER("pages_fake", 0);
	check_all(_metadata, self);

	pfn = pfn_of_page(_metadata, &self->a, HIT);
	merge_all(&self->a, &self->b);
	EXPECT_EQ(pfn, pfn_of_page(_metadata, &self->b, HIT));
	EXPECT_EQ(NPAGES, hash_all(_metadata, &self->c));
	EXPECT_COUNTER("pages_fake", 0);
	EXPECT_FALSE(write_breaks(_metadata, &self->c, HIT));
	EXPECT_TRUE(write_breaks(_metadata, &self->a, HIT));
	EXPECT_TRUE(write_breaks(_metadata, &self->b, HIT));
	EXPECT_EQ(pfn, pfn_of_page(_metadata, &self->b, HIT));
	check_all(_metadata, self);

	/* And it is no use to have merged before. */
	set_strict(_metadata, true);
	expect_nothing_shared(_metadata);
	check_all(_metadata, self);
}

/* Free pages, those included that processors keep at hand */
static long free_pages(struct __test_metadata *_metadata)
{
	char line[256];
	long sum = 0, n;
	FILE *in;

	in = fopen("/proc/zoneinfo", "r");
	ASSERT_NE(NULL, in);
	while (fgets(line, sizeof(line), in)) {
		if (sscanf(line, " nr_free_pages %ld", &n) == 1 ||
		    sscanf(line, " count: %ld", &n) == 1)
			sum += n;
	}
	fclose(in);
	return sum;
}

/* The reserve is there when it is on, and is not when it is off. */
TEST_F(strict, reserve)
{
	bool given = false, taken = false;
	long before;

	/* Others take and free memory, too: one round has to show it. */
	for (int i = 0; i < 20 && !(given && taken); i++) {
		before = free_pages(_metadata);
		set_strict(_metadata, false);
		given |= free_pages(_metadata) - before > NR_FRAMES / 2;
		before = free_pages(_metadata);
		set_strict(_metadata, true);
		taken |= before - free_pages(_metadata) > NR_FRAMES / 2;
	}
	EXPECT_TRUE(given);
	EXPECT_TRUE(taken);
}

/* The knob is turned while a policy's verbs and writers are at work. */
TEST_F(strict, turned)
{
	pid_t pid = fork();

	ASSERT_LE(0, pid);
	if (!pid) {
		for (int i = 0; i < 30; i++)
			set_strict(_metadata, i & 1);
		_exit(_metadata->exit_code == KSFT_FAIL);
	}
	for (int i = 0; i < 100; i++) {
		merge_pages(_metadata, &self->a, 0, &self->b, 0, NPAGES);
		hash_all(_metadata, &self->c);
		for (size_t p = 0; p < NPAGES - 1; p++) {
			write_breaks(_metadata, &self->a, p);
			ASSERT_EQ(PAGE, pwrite(self->a.fd,
					       self->b.want + p * PAGE, PAGE,
					       p * PAGE));
			model_write(_metadata, &self->a, p * PAGE,
				    self->b.want + p * PAGE, PAGE);
			write_breaks(_metadata, &self->c, p);
		}
		check_file(&self->a);
		check_file(&self->b);
		check_file(&self->c);
	}
	reap(_metadata, pid);
	check_all(_metadata, self);
}

/* Nobody but root turns it, and nonsense does not. */
TEST_F(strict, knob)
{
	char text[64];
	pid_t pid;

	EXPECT_EQ(-EINVAL, write_text(KSM_EXT_SYSFS "strict", "nonsense"));
	EXPECT_EQ(-EINVAL, write_text(KSM_EXT_SYSFS "strict", "2"));
	EXPECT_EQ(1, counter(_metadata, "strict"));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		ASSERT_EQ(0, setgid(65534));
		ASSERT_EQ(0, setuid(65534));
		EXPECT_EQ(-EACCES, write_text(KSM_EXT_SYSFS "strict", "0"));
		EXPECT_EQ(0, read_text(KSM_EXT_SYSFS "strict", text,
				       sizeof(text)));
		EXPECT_EQ(-EACCES, read_text(KSM_EXT_SYSFS "pages_fake", text,
					     sizeof(text)));
		_exit(_metadata->exit_code == KSFT_FAIL);
	}
	reap(_metadata, pid);
	EXPECT_EQ(1, counter(_metadata, "strict"));
}

/* Files of a file system that goes take all with them. */
TEST_F(strict, umount)
{
	char mnt[MAX_PATH];
	struct file d, e;

	mount_new(_metadata, self->dir, mnt, mkfs_like(self->dir), "");
	file_create(_metadata, &d, mnt, "d", SIZE, 1);
	file_create(_metadata, &e, mnt, "e", SIZE, 2);
	EXPECT_EQ(NPAGES, merge_pages(_metadata, &self->a, 0, &d, 0, NPAGES));
	EXPECT_EQ(NPAGES, hash_all(_metadata, &e));
	check_totals(2 * NPAGES);
	EXPECT_COUNTER("pages_fake", NPAGES);
	file_close(&d);
	file_close(&e);
	ASSERT_EQ(0, umount(mnt));
	check_totals(NPAGES);
	EXPECT_COUNTER("pages_fake", 0);
	check_all(_metadata, self);
}

static void keep_last_page(struct __test_metadata *_metadata,
			   const struct file *f)
{
	void *map = file_map(_metadata, f, PROT_READ, MAP_SHARED);

	ASSERT_EQ(0, mlock(map + f->size - PAGE, PAGE));
}

/* Where memory is short nothing waits for ever, and no byte is wrong. */
TEST_F(strict, pressure)
{
	const size_t nr = 4096;
	char group[MAX_PATH];
	struct file d, e;
	pid_t pid;

	/* The models take 32 MiB of it; the pages would like to have as much. */
	cgroup_new(_metadata, group, "strict");
	ASSERT_EQ(0, cgroup_write(group, "memory.max", "48M"));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		ASSERT_EQ(0, cgroup_write(group, "cgroup.procs", "0"));
		file_create(_metadata, &d, self->dir, "d", nr * PAGE, 3);
		file_create(_metadata, &e, self->dir, "e", nr * PAGE, 3);
		/* A file with nothing in memory has no number. */
		keep_last_page(_metadata, &d);
		keep_last_page(_metadata, &e);
		for (size_t i = 0; i < nr; i += 256) {
			read_to_cache(_metadata, &d);
			merge_pages(_metadata, &d, i, &e, i, 64);
			write_breaks(_metadata, &d, i);
			write_breaks(_metadata, &e, i + 1);
		}
		check_file(&d);
		check_file(&e);
		_exit(_metadata->exit_code == KSFT_FAIL);
	}
	reap(_metadata, pid);
	EXPECT_EQ(0, rmdir(group));
}

MANUAL_TEST_MAIN
