// SPDX-License-Identifier: GPL-2.0
/*
 * Merging: what may share a page and what may not, what sharing looks like
 * from outside, and what it saves.
 */
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <linux/falloc.h>

#include "ksm_ext_test.h"
#include "../../../mm/gup_test.h"	/* of the kernel tree */

#define NPAGES	8
#define TAIL	1000
#define SIZE	((NPAGES - 1) * PAGE + TAIL)
#define HIT	2

FIXTURE(merge) {
	char dir[MAX_PATH];
	struct file a, b;	/* twins, not merged */
};

FIXTURE_SETUP(merge)
{
	test_begin(_metadata, self->dir);
	file_create(_metadata, &self->a, self->dir, "a", SIZE, 1);
	file_create(_metadata, &self->b, self->dir, "b", SIZE, 1);
}

FIXTURE_TEARDOWN(merge)
{
	file_close(&self->a);
	file_close(&self->b);
	test_end(_metadata, self->dir);
}

static long refused(struct __test_metadata *_metadata, const char *reason)
{
	char name[64];

	snprintf(name, sizeof(name), "merge/refused_%s", reason);
	return counter(_metadata, name);
}

/*
 * Page HIT of B does not go into A's, for this errno and this named reason,
 * however patiently one asks; and nothing happened.
 */
#define EXPECT_REFUSED(err, reason)					\
	do {								\
		long before = refused(_metadata, reason);		\
									\
		EXPECT_EQ(-(err), merge_pages(_metadata, &self->a, HIT,	\
					      &self->b, HIT, 1))	\
			TH_LOG("refusal expected: %s", reason);		\
		EXPECT_LT(before, refused(_metadata, reason))		\
			TH_LOG("not counted: %s", reason);		\
		check_totals(0);					\
		check_file(&self->a);					\
		check_file(&self->b);					\
	} while (0)

/* ---- what is merged ---- */

TEST_F(merge, two_files)
{
	struct file *a = &self->a, *b = &self->b;

	for (size_t i = 0; i < NPAGES; i++)
		EXPECT_APART(a, i, b, i);
	merge_all(a, b);
	check_totals(2 * NPAGES);
	EXPECT_COUNTER("pages_shared", NPAGES);
	EXPECT_COUNTER("pages_sharing", NPAGES);
	check_file(a);
	check_file(b);
	for (size_t i = 0; i < NPAGES; i++)
		EXPECT_SHARED(a, i, b, i);
	/* Looking broke nothing. */
	check_totals(2 * NPAGES);
	check_disk(a);
	check_disk(b);
}

TEST_F(merge, mapped_files)
{
	struct file *a = &self->a, *b = &self->b;
	unsigned char *map[3];

	map[0] = file_map(_metadata, a, PROT_READ | PROT_WRITE, MAP_SHARED);
	map[1] = file_map(_metadata, b, PROT_READ, MAP_SHARED);
	map[2] = file_map(_metadata, b, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	for (int i = 0; i < 3; i++)
		touch(map[i], SIZE);
	merge_all(a, b);
	check_map(a, map[0]);
	check_map(b, map[1]);
	check_map(b, map[2]);
	if (!control) {
		for (size_t i = 0; i < NPAGES; i++) {
			unsigned long pfn = pfn_of(map[0] + i * PAGE);

			EXPECT_NE(0, pfn);
			EXPECT_EQ(pfn, pfn_of(map[1] + i * PAGE));
			EXPECT_EQ(pfn, pfn_of(map[2] + i * PAGE));
		}
	}
	file_unmap(a, map[0]);
	file_unmap(b, map[1]);
	file_unmap(b, map[2]);
}

/* Pages of one file, in places and an order that have nothing in common. */
TEST_F(merge, within_one_file)
{
	struct file d;
	unsigned char *same = page_buffer(_metadata, PAGE);

	fill(same, PAGE, 55);
	file_create(_metadata, &d, self->dir, "d", SIZE, 2);
	for (size_t i = 1; i < 6; i += 2) {
		ASSERT_EQ(PAGE, pwrite(d.fd, same, PAGE, i * PAGE));
		model_write(_metadata, &d, i * PAGE, same, PAGE);
	}
	ASSERT_EQ(0, fsync(d.fd));
	ASSERT_EQ(1, merge_pages(_metadata, &d, 3, &d, 5, 1));
	ASSERT_EQ(1, merge_pages(_metadata, &d, 3, &d, 1, 1));
	check_totals(control ? 0 : 3);
	EXPECT_COUNTER("pages_shared", 1);
	check_file(&d);
	EXPECT_SHARED(&d, 1, &d, 3);
	EXPECT_SHARED(&d, 1, &d, 5);
	EXPECT_APART(&d, 1, &d, 2);
	ASSERT_EQ(5, pwrite(d.fd, "hello", 5, 3 * PAGE));
	model_write(_metadata, &d, 3 * PAGE, "hello", 5);
	check_file(&d);
	EXPECT_SHARED(&d, 1, &d, 5);
	EXPECT_APART(&d, 1, &d, 3);
	check_disk(&d);
	file_close(&d);
	free(same);
}

TEST_F(merge, page_with_itself)
{
	int ret;

	SKIP_IF_CONTROL();
	ret = merge_pages(_metadata, &self->a, HIT, &self->a, HIT, 1);
	EXPECT_TRUE(ret == 1 || ret == -EINVAL) TH_LOG("merge: %d", ret);
	check_file(&self->a);
	/* One page alone is no saving. */
	EXPECT_COUNTER("pages_sharing", 0);
}

/* Different pages of different files at different places. */
TEST_F(merge, different_offsets)
{
	struct file *a = &self->a, *b = &self->b, d;

	file_create(_metadata, &d, self->dir, "d", 4 * PAGE, 2);
	ASSERT_EQ(PAGE, pwrite(d.fd, a->want + 6 * PAGE, PAGE, PAGE));
	model_write(_metadata, &d, PAGE, a->want + 6 * PAGE, PAGE);
	ASSERT_EQ(0, fsync(d.fd));
	ASSERT_EQ(1, merge_pages(_metadata, a, 6, &d, 1, 1));
	ASSERT_EQ(1, merge_pages(_metadata, &d, 1, b, 6, 1));
	check_file(a);
	check_file(b);
	check_file(&d);
	EXPECT_SHARED(&d, 1, b, 6);
	EXPECT_SHARED(&d, 1, a, 6);
	check_totals(3);
	file_close(&d);
}

/*
 * Page cache readers that know nothing of an alias's place: long reads that
 * start and end anywhere, in files where shared and plain pages alternate.
 */
TEST_F(merge, read_mixed)
{
	struct file *a = &self->a, *b = &self->b;
	unsigned char buf[SIZE];

	for (size_t i = 0; i < NPAGES; i++) {
		if (i % 3) {
			ASSERT_EQ(1, merge_pages(_metadata, a, i, b, i, 1));
		}
	}
	for (size_t off = 0; off < SIZE; off += 777) {
		for (size_t len = 1; off + len <= SIZE; len = len * 3 + 11) {
			ASSERT_EQ(len, pread(b->fd, buf, len, off));
			ASSERT_EQ(0, memcmp(buf, b->want + off, len)) {
				TH_LOG("%zu bytes at %zu", len, off);
			}
		}
	}
	check_file(a);
	check_file(b);
}

/* A last page that is equal only because nothing follows in it. */
TEST_F(merge, tail_page)
{
	struct file *a = &self->a, d;

	/* TAIL bytes, then real zeros */
	file_create(_metadata, &d, self->dir, "d", 2 * PAGE, 2);
	model_zero(&d, PAGE, PAGE);
	memcpy(d.want + PAGE, a->want + (NPAGES - 1) * PAGE, TAIL);
	ASSERT_EQ(2 * PAGE, pwrite(d.fd, d.want, 2 * PAGE, 0));
	ASSERT_EQ(0, fsync(d.fd));
	ASSERT_EQ(1, merge_pages(_metadata, &d, 1, a, NPAGES - 1, 1));
	EXPECT_SHARED(&d, 1, a, NPAGES - 1);
	check_file(a);
	check_file(&d);

	/* What was beyond the end is the file's now, and still zeros. */
	ASSERT_EQ(0, ftruncate(a->fd, NPAGES * PAGE));
	model_resize(_metadata, a, NPAGES * PAGE);
	check_file(a);
	ASSERT_EQ(1, pwrite(d.fd, "x", 1, 2 * PAGE - 1));
	model_write(_metadata, &d, 2 * PAGE - 1, "x", 1);
	check_file(a);
	check_file(&d);
	check_disk(a);
	check_disk(&d);
	file_close(&d);
}

/* Nothing beyond the end of a file is merged. */
TEST_F(merge, beyond_the_end)
{
	SKIP_IF_CONTROL();
	EXPECT_GT(0, merge_pages(_metadata, &self->a, NPAGES, &self->b, NPAGES,
				 1));
	EXPECT_EQ(NPAGES, merge_pages(_metadata, &self->a, 0, &self->b, 0,
				      2 * NPAGES));
	check_totals(2 * NPAGES);
}

/* Two shared pages with the same bytes become one. */
TEST_F(merge, two_roots)
{
	struct file *a = &self->a, *b = &self->b, c, d;

	file_create(_metadata, &c, self->dir, "c", SIZE, 1);
	file_create(_metadata, &d, self->dir, "d", SIZE, 1);
	merge_all(a, b);
	merge_all(&c, &d);
	check_totals(4 * NPAGES);
	EXPECT_COUNTER("pages_shared", 2 * NPAGES);
	EXPECT_APART(b, HIT, &c, HIT);
	/* @d goes along, but in strict mode: it would tell how many do. */
	merge_all(a, &c);
	check_totals(4 * NPAGES);
	EXPECT_COUNTER("pages_shared", strict ? 2 * NPAGES : NPAGES);
	for (size_t i = 0; i < NPAGES; i++) {
		EXPECT_SHARED(a, i, b, i);
		EXPECT_SHARED(a, i, &c, i);
		if (strict)
			EXPECT_APART(a, i, &d, i);
		else
			EXPECT_SHARED(a, i, &d, i);
	}
	check_file(a);
	check_file(b);
	check_file(&c);
	check_file(&d);
	file_close(&c);
	file_close(&d);
}

/* Who shares with a page that moves goes along only if all may. */
TEST_F(merge, two_roots_left)
{
	struct file *a = &self->a, *b = &self->b, c, d;

	SKIP_IF_CONTROL();
	file_create(_metadata, &c, self->dir, "c", SIZE, 1);
	file_create(_metadata, &d, self->dir, "d", SIZE, 1);
	merge_all(a, b);
	merge_all(&c, &d);

	/* There is no room. */
	ASSERT_EQ(0, write_text(KSM_EXT_SYSFS "max_page_sharing", "3"));
	EXPECT_EQ(1, merge_pages(_metadata, a, 0, &c, 0, 1));
	EXPECT_SHARED(a, 0, &c, 0);
	EXPECT_APART(a, 0, &d, 0);
	ASSERT_EQ(0, write_text(KSM_EXT_SYSFS "max_page_sharing", "256"));

	/* It is of another domain by now. */
	set_domain(_metadata, &d, 9);
	EXPECT_EQ(1, merge_pages(_metadata, a, 1, &c, 1, 1));
	EXPECT_SHARED(a, 1, &c, 1);
	EXPECT_APART(a, 1, &d, 1);

	check_totals(4 * NPAGES);
	EXPECT_COUNTER("pages_shared", 2 * NPAGES);
	check_file(a);
	check_file(b);
	check_file(&c);
	check_file(&d);
	file_close(&c);
	file_close(&d);
}

/* Pairs that share already count as merged, and nothing changes. */
TEST_F(merge, twice)
{
	merge_all(&self->a, &self->b);
	merge_all(&self->a, &self->b);
	merge_all(&self->b, &self->a);
	check_totals(2 * NPAGES);
	check_file(&self->a);
	check_file(&self->b);
}

/* One page stands for very many, and the cap on that holds. */
TEST_F(merge, many_aliases)
{
	long most = control ? 256 : counter(_metadata, "max_page_sharing");
	const size_t nr = most + 50;
	unsigned char *same = page_buffer(_metadata, PAGE);
	struct file d;

	ASSERT_LE(2, most);
	ASSERT_GE(4096, most);
	fill(same, PAGE, 55);
	file_create(_metadata, &d, self->dir, "d", 0, 2);
	for (size_t i = 0; i < nr; i++) {
		model_write(_metadata, &d, i * PAGE, same, PAGE);
		ASSERT_EQ(PAGE, pwrite(d.fd, same, PAGE, i * PAGE));
	}
	ASSERT_EQ(0, fsync(d.fd));
	for (size_t i = 1; i < (size_t)most; i++) {
		ASSERT_EQ(1, merge_pages(_metadata, &d, 0, &d, i, 1)) {
			TH_LOG("alias %zu", i);
		}
	}
	check_totals(most);
	EXPECT_COUNTER("pages_shared", 1);
	EXPECT_SHARED(&d, 0, &d, most - 1);
	if (!control) {
		long before = refused(_metadata, "full");

		EXPECT_EQ(-EMLINK, merge_pages(_metadata, &d, 0, &d, most, 1));
		EXPECT_LT(before, refused(_metadata, "full"));
		EXPECT_APART(&d, 0, &d, most);
	}
	/* The one that was refused becomes the next page to share. */
	for (size_t i = most + 1; i < nr; i++) {
		ASSERT_EQ(1, merge_pages(_metadata, &d, most, &d, i, 1));
	}
	check_totals(nr);
	EXPECT_COUNTER("pages_shared", 2);
	EXPECT_SHARED(&d, most, &d, nr - 1);
	check_file(&d);

	/* Writing to one of many, and to many, one after the other. */
	for (size_t i = 0; i < nr; i += 3) {
		ASSERT_EQ(4, pwrite(d.fd, "text", 4, i * PAGE + i));
		model_write(_metadata, &d, i * PAGE + i, "text", 4);
	}
	check_file(&d);
	EXPECT_SHARED(&d, 1, &d, 2);
	check_totals(nr - (nr + 2) / 3);
	check_disk(&d);
	file_close(&d);
	free(same);
}

static long meminfo(struct __test_metadata *_metadata, const char *name)
{
	char line[128], seen[64];
	long value = -1, kib;
	FILE *in;

	/* fold what each CPU counted for itself */
	ASSERT_EQ(0, write_text("/proc/sys/vm/stat_refresh", "1"));
	in = fopen("/proc/meminfo", "r");
	ASSERT_NE(NULL, in);
	while (value < 0 && fgets(line, sizeof(line), in)) {
		if (sscanf(line, "%63[^:]: %ld kB", seen, &kib) == 2 &&
		    !strcmp(seen, name))
			value = kib;
	}
	fclose(in);
	ASSERT_LE(0, value);
	return value;
}

TEST_F(merge, saves_memory)
{
	const size_t size = 2048 * PAGE;
	long before, after, saved;
	struct file c, d;

	file_create(_metadata, &c, self->dir, "c", size, 3);
	file_create(_metadata, &d, self->dir, "d", size, 3);
	before = meminfo(_metadata, "Cached");
	merge_all(&c, &d);
	after = meminfo(_metadata, "Cached");
	saved = (before - after) * 1024;
	SKIP_IF_CONTROL();
	EXPECT_LT(size * 95 / 100, saved) {
		TH_LOG("Cached: %ld KiB before, %ld after", before, after);
	}
	EXPECT_LT(saved, size * 110 / 100);
	EXPECT_COUNTER("pages_sharing", size / PAGE);
	EXPECT_LT(0, counter(_metadata, "general_profit"));
	EXPECT_GT(size, counter(_metadata, "general_profit"));
	check_file(&c);
	check_file(&d);
	EXPECT_COUNTER("pages_sharing", size / PAGE);
	file_close(&c);
	file_close(&d);
}

/* ---- what is refused ---- */

/* Bytes decide, not what a policy says. */
TEST_F(merge, different_bytes)
{
	struct file *b = &self->b;
	size_t off = HIT * PAGE + PAGE - 1;
	unsigned char byte = b->want[off] ^ 1;

	SKIP_IF_CONTROL();
	/* one bit in the last byte of the page */
	ASSERT_EQ(1, pwrite(b->fd, &byte, 1, off));
	model_write(_metadata, b, off, &byte, 1);
	ASSERT_EQ(0, fsync(b->fd));
	EXPECT_REFUSED(EILSEQ, "differ");
	EXPECT_APART(&self->a, HIT, b, HIT);
	/* A run stops in front of it. */
	EXPECT_EQ(HIT, merge_pages(_metadata, &self->a, 0, b, 0, NPAGES));
	check_totals(2 * HIT);
	check_file(b);
	check_disk(b);
}

TEST_F(merge, different_bytes_of_roots)
{
	struct file *a = &self->a, *b = &self->b, c, d;

	SKIP_IF_CONTROL();
	file_create(_metadata, &c, self->dir, "c", SIZE, 2);
	file_create(_metadata, &d, self->dir, "d", SIZE, 2);
	merge_all(a, b);
	merge_all(&c, &d);
	EXPECT_EQ(-EILSEQ, merge_pages(_metadata, a, HIT, &c, HIT, 1));
	EXPECT_EQ(-EILSEQ, merge_pages(_metadata, a, HIT, b, HIT + 1, 1));
	check_totals(4 * NPAGES);
	EXPECT_COUNTER("pages_shared", 2 * NPAGES);
	check_file(a);
	check_file(b);
	check_file(&c);
	check_file(&d);
	file_close(&c);
	file_close(&d);
}

TEST_F(merge, different_domains)
{
	struct file *a = &self->a, *b = &self->b;

	SKIP_IF_CONTROL();
	set_domain(_metadata, a, 7);
	set_domain(_metadata, b, 8);
	EXPECT_REFUSED(EXDEV, "domain");
	EXPECT_APART(a, HIT, b, HIT);
	set_domain(_metadata, b, 7);
	merge_all(a, b);
}

/* A shared page stays in its domain. */
TEST_F(merge, different_domain_of_root)
{
	struct file *a = &self->a, *b = &self->b, c;

	SKIP_IF_CONTROL();
	file_create(_metadata, &c, self->dir, "c", SIZE, 1);
	set_domain(_metadata, &c, 9);
	merge_all(a, b);
	EXPECT_EQ(-EXDEV, merge_pages(_metadata, a, HIT, &c, HIT, 1));
	EXPECT_EQ(-EXDEV, merge_pages(_metadata, &c, HIT, b, HIT, 1));
	EXPECT_APART(a, HIT, &c, HIT);
	check_totals(2 * NPAGES);
	file_close(&c);
}

TEST_F(merge, domain_zero)
{
	SKIP_IF_CONTROL();
	set_domain(_metadata, &self->a, 0);
	EXPECT_REFUSED(EPERM, "no_domain");
	set_domain(_metadata, &self->b, 0);
	EXPECT_REFUSED(EPERM, "no_domain");
	set_domain(_metadata, &self->a, 1);
	EXPECT_REFUSED(EPERM, "no_domain");
	set_domain(_metadata, &self->b, 1);
	merge_all(&self->a, &self->b);
}

TEST_F(merge, dirty_page)
{
	struct file *a = &self->a, *b = &self->b;
	long before;

	SKIP_IF_CONTROL();
	ASSERT_EQ(PAGE, pwrite(b->fd, b->want + HIT * PAGE, PAGE, HIT * PAGE));
	before = refused(_metadata, "dirty");
	/* Not patiently: that would clean the page. */
	EXPECT_EQ(-EBUSY, try_merge(_metadata, a, HIT, b, HIT, 1));
	EXPECT_EQ(-EBUSY, try_merge(_metadata, b, HIT, a, HIT, 1));
	EXPECT_EQ(before + 2, refused(_metadata, "dirty"));
	check_totals(0);
	ASSERT_EQ(0, fsync(b->fd));
	merge_all(a, b);
}

/* Dirty in a page table only; nobody told the page yet. */
TEST_F(merge, dirty_mapping)
{
	struct file *a = &self->a, *b = &self->b;
	unsigned char *map;
	int ret;

	SKIP_IF_CONTROL();
	map = file_map(_metadata, b, PROT_READ | PROT_WRITE, MAP_SHARED);
	map[HIT * PAGE] ^= 0xff;
	ASSERT_EQ(0, msync(map, NPAGES * PAGE, MS_SYNC));
	map[HIT * PAGE] ^= 0xff;
	ret = try_merge(_metadata, a, HIT, b, HIT, 1);
	EXPECT_EQ(-EBUSY, ret);
	check_map(b, map);
	check_file(b);
	check_totals(0);
	ASSERT_EQ(0, msync(map, NPAGES * PAGE, MS_SYNC));
	check_disk(b);
	merge_all(a, b);
	check_map(b, map);
	file_unmap(b, map);
}

TEST_F(merge, mlocked_page)
{
	unsigned char *map;

	SKIP_IF_CONTROL();
	map = file_map(_metadata, &self->b, PROT_READ, MAP_SHARED);
	ASSERT_EQ(0, mlock(map + HIT * PAGE, PAGE));
	EXPECT_REFUSED(EBUSY, "mlocked");
	ASSERT_EQ(0, munlock(map + HIT * PAGE, PAGE));
	merge_all(&self->a, &self->b);

	/* The other way round the file gets its own pages. */
	ASSERT_EQ(0, mlock(map, NPAGES * PAGE));
	check_map(&self->b, map);
	check_totals(NPAGES);
	ASSERT_EQ(3, pwrite(self->b.fd, "abc", 3, HIT * PAGE));
	model_write(_metadata, &self->b, HIT * PAGE, "abc", 3);
	check_map(&self->b, map);
	check_file(&self->a);
	file_unmap(&self->b, map);
}

/* A page that sits in a pipe. */
TEST_F(merge, page_in_pipe)
{
	off_t off = HIT * PAGE;
	unsigned char buf[PAGE];
	int pipes[2];

	SKIP_IF_CONTROL();
	ASSERT_EQ(0, pipe(pipes));
	ASSERT_EQ(PAGE, splice(self->b.fd, &off, pipes[1], NULL, PAGE, 0));
	EXPECT_REFUSED(EBUSY, "pinned");
	ASSERT_EQ(PAGE, read(pipes[0], buf, PAGE));
	EXPECT_EQ(0, memcmp(buf, self->b.want + HIT * PAGE, PAGE));
	merge_all(&self->a, &self->b);
	close(pipes[0]);
	close(pipes[1]);
}

/* A page that a device may read or write at any time. */
static void pinned_page(struct __test_metadata *_metadata,
			FIXTURE_DATA(merge) *self, bool write)
{
	struct pin_longterm_test pin = { .size = PAGE };
	unsigned char *map;
	int fd;

	SKIP_IF_CONTROL();
	fd = open("/sys/kernel/debug/gup_test", O_RDWR);
	ASSERT_LE(0, fd) TH_LOG("no gup_test in debugfs (CONFIG_GUP_TEST?)");
	map = file_map(_metadata, &self->b, PROT_READ | PROT_WRITE,
		       write ? MAP_PRIVATE : MAP_SHARED);
	pin.addr = (uintptr_t)map + HIT * PAGE;
	pin.flags = write ? PIN_LONGTERM_TEST_FLAG_USE_WRITE : 0;
	ASSERT_EQ(0, ioctl(fd, PIN_LONGTERM_TEST_START, &pin));
	if (write) {
		/* It pinned a private copy: no matter to the file's page. */
		merge_all(&self->a, &self->b);
	} else {
		EXPECT_REFUSED(EBUSY, "pinned");
	}
	ASSERT_EQ(0, ioctl(fd, PIN_LONGTERM_TEST_STOP));
	merge_all(&self->a, &self->b);
	check_file(&self->b);
	file_unmap(&self->b, map);
	close(fd);
}

TEST_F(merge, pinned_page)
{
	pinned_page(_metadata, self, false);
}

TEST_F(merge, pinned_private_copy)
{
	pinned_page(_metadata, self, true);
}

/* The file is known by another page that is cached. */
TEST_F(merge, not_cached)
{
	char byte;

	SKIP_IF_CONTROL();
	drop_file(_metadata, &self->b);
	ASSERT_EQ(0, posix_fadvise(self->b.fd, 0, 0, POSIX_FADV_RANDOM));
	ASSERT_EQ(1, pread(self->b.fd, &byte, 1, 0));
	EXPECT_EQ(-ENODATA,
		  merge_pages(_metadata, &self->a, HIT, &self->b, HIT, 1));
	EXPECT_EQ(-ENODATA,
		  merge_pages(_metadata, &self->b, HIT, &self->a, HIT, 1));
	check_totals(0);
	read_to_cache(_metadata, &self->b);
	merge_all(&self->a, &self->b);
}

TEST_F(merge, nonsense)
{
	struct manual_args args = { .nr = 1 };
	int ret;

	SKIP_IF_CONTROL();
	args.dst = file_id(_metadata, &self->a);
	args.src = 1UL << 60;
	EXPECT_EQ(-ENOENT, manual_call(manual->progs.manual_merge, &args));
	args.src = 0;
	ret = manual_call(manual->progs.manual_merge, &args);
	EXPECT_TRUE(ret == -ENOENT || ret == -EINVAL);
	args.src = file_id(_metadata, &self->b);
	args.nr = 0;
	EXPECT_EQ(-EINVAL, manual_call(manual->progs.manual_merge, &args));
	args.nr = ~0U;
	EXPECT_EQ(-EINVAL, manual_call(manual->progs.manual_merge, &args));
	args.nr = 2;
	args.src_index = ~0ULL;
	EXPECT_GT(0, manual_call(manual->progs.manual_merge, &args));
	args.src_index = ~0ULL >> 12;
	EXPECT_GT(0, manual_call(manual->progs.manual_merge, &args));
	check_totals(0);
}

TEST_F(merge, file_is_gone)
{
	struct manual_args args = { .nr = 1 };
	struct stat st;

	SKIP_IF_CONTROL();
	args.dst = file_id(_metadata, &self->a);
	args.src = file_id(_metadata, &self->b);
	ASSERT_EQ(0, fstat(self->b.fd, &st));
	file_close(&self->b);
	ASSERT_EQ(0, unlink(self->b.path));
	sync();
	EXPECT_EQ(-ENOENT, manual_call(manual->progs.manual_merge, &args));

	/* Should the inode number come back, the id does not. */
	file_create(_metadata, &self->b, self->dir, "b", SIZE, 1);
	EXPECT_LT(args.src, file_id(_metadata, &self->b));
	EXPECT_EQ(-ENOENT, manual_call(manual->progs.manual_merge, &args));
	check_totals(0);
}

/* Files without a backing store are not known. */
TEST_F(merge, tmpfs)
{
	struct manual_args args = {};
	char mnt[MAX_PATH];
	struct file d;

	SKIP_IF_CONTROL();
	ASSERT_GT(MAX_PATH, snprintf(mnt, MAX_PATH, "%s/mnt", self->dir));
	ASSERT_EQ(0, mkdir(mnt, 0755));
	ASSERT_EQ(0, mount("tmpfs", mnt, "tmpfs", 0, NULL));
	file_create(_metadata, &d, mnt, "d", SIZE, 1);
	EXPECT_EQ(-ENOENT, find_file(_metadata, &d, &args));
	file_close(&d);
	ASSERT_EQ(0, umount(mnt));
}

TEST_F(merge, hash)
{
	struct manual_args args = { .nr = NPAGES };
	__u64 first[NPAGES];

	SKIP_IF_CONTROL();
	args.dst = file_id(_metadata, &self->a);
	EXPECT_EQ(NPAGES, manual_call(manual->progs.manual_hash, &args));
	memcpy(first, manual->bss->hashes, sizeof(first));
	for (int i = 0; i < NPAGES; i++) {
		EXPECT_NE(0, first[i]);
		EXPECT_NE(first[i], first[(i + 1) % NPAGES]);
	}
	args.dst = file_id(_metadata, &self->b);
	EXPECT_EQ(NPAGES, manual_call(manual->progs.manual_hash, &args));
	EXPECT_EQ(0, memcmp(first, manual->bss->hashes, sizeof(first)));
	/* and of shared pages the same */
	merge_all(&self->a, &self->b);
	EXPECT_EQ(NPAGES, manual_call(manual->progs.manual_hash, &args));
	EXPECT_EQ(0, memcmp(first, manual->bss->hashes, sizeof(first)));
	/* a dirty page has none */
	ASSERT_EQ(1, pwrite(self->b.fd, "x", 1, HIT * PAGE));
	model_write(_metadata, &self->b, HIT * PAGE, "x", 1);
	EXPECT_EQ(NPAGES - 1, manual_call(manual->progs.manual_hash, &args));
	EXPECT_EQ(0, manual->bss->hashes[HIT]);
	EXPECT_EQ(first[HIT + 1], manual->bss->hashes[HIT + 1]);
}

/* ---- what sharing looks like ---- */

TEST_F(merge, mincore)
{
	merge_all(&self->a, &self->b);
	EXPECT_EQ(NPAGES, resident(_metadata, &self->a));
	EXPECT_EQ(NPAGES, resident(_metadata, &self->b));
	drop_file(_metadata, &self->b);
	EXPECT_EQ(NPAGES, resident(_metadata, &self->a));
	EXPECT_EQ(0, resident(_metadata, &self->b));
}

TEST_F(merge, cachestat)
{
	struct cachestat_range all = {};
	struct file *files[] = { &self->a, &self->b };
	struct cachestat cs;

	merge_all(&self->a, &self->b);
	for (int i = 0; i < 2; i++) {
		ASSERT_EQ(0, syscall(SYS_cachestat, files[i]->fd, &all, &cs,
				     0)) {
			TH_LOG("%s (CONFIG_CACHESTAT_SYSCALL?)",
			       strerror(errno));
		}
		EXPECT_EQ(NPAGES, cs.nr_cache);
		EXPECT_EQ(0, cs.nr_dirty);
		EXPECT_EQ(0, cs.nr_writeback);
		EXPECT_EQ(0, cs.nr_evicted);
		EXPECT_EQ(0, cs.nr_recently_evicted);
	}
	drop_file(_metadata, &self->b);
	ASSERT_EQ(0, syscall(SYS_cachestat, self->b.fd, &all, &cs, 0));
	EXPECT_EQ(0, cs.nr_cache);
}

/* The same file with and without merged pages looks the same to lseek(2). */
TEST_F(merge, seek_data_hole)
{
	struct file *files[2], c, d;
	off_t seen[2][2 * 24];

	file_create(_metadata, &c, self->dir, "c", 24 * PAGE, 1);
	file_create(_metadata, &d, self->dir, "d", 24 * PAGE, 1);
	files[0] = &c;
	files[1] = &d;
	for (int i = 0; i < 2; i++) {
		ASSERT_EQ(0, fallocate(files[i]->fd, FALLOC_FL_PUNCH_HOLE |
				       FALLOC_FL_KEEP_SIZE, 8 * PAGE,
				       8 * PAGE));
		/* unwritten, and with pages in the page cache */
		ASSERT_EQ(0, fallocate(files[i]->fd, 0, 12 * PAGE, 4 * PAGE));
		model_zero(files[i], 8 * PAGE, 8 * PAGE);
		ASSERT_EQ(0, fsync(files[i]->fd));
		drop_file(_metadata, files[i]);
		read_to_cache(_metadata, files[i]);
	}
	merge_all(&c, &d);
	/* d is merged, c is made plain again */
	drop_file(_metadata, &c);
	read_to_cache(_metadata, &c);
	for (int i = 0; i < 2; i++) {
		for (int p = 0; p < 24; p++) {
			seen[i][2 * p] = lseek(files[i]->fd, p * PAGE,
					       SEEK_DATA);
			seen[i][2 * p + 1] = lseek(files[i]->fd, p * PAGE,
						   SEEK_HOLE);
		}
	}
	for (int p = 0; p < 2 * 24; p++) {
		EXPECT_EQ(seen[0][p], seen[1][p]) TH_LOG("page %d", p / 2);
	}
	check_file(&c);
	check_file(&d);
	file_close(&c);
	file_close(&d);
}

/* Reading around what is shared does not tear it apart. */
TEST_F(merge, readahead)
{
	const size_t nr = 128, kept = nr / 2;
	struct file c, d;

	file_create(_metadata, &c, self->dir, "c", nr * PAGE, 3);
	file_create(_metadata, &d, self->dir, "d", nr * PAGE, 3);
	/* two stretches stay cached, and shared; all else has to be read */
	drop_file(_metadata, &d);
	ASSERT_EQ(0, posix_fadvise(d.fd, 0, 0, POSIX_FADV_RANDOM));
	for (size_t i = 0; i < nr; i++) {
		char byte;

		if (i % 32 >= 8 && i % 32 < 24) {
			ASSERT_EQ(1, pread(d.fd, &byte, 1, i * PAGE));
		}
	}
	for (size_t i = 8; i < nr; i += 32) {
		ASSERT_EQ(16, merge_pages(_metadata, &c, i, &d, i, 16));
	}
	check_totals(2 * kept);
	ASSERT_EQ(0, posix_fadvise(d.fd, 0, 0, POSIX_FADV_SEQUENTIAL));
	check_file(&d);
	ASSERT_EQ(0, readahead(d.fd, 0, nr * PAGE));
	ASSERT_EQ(0, posix_fadvise(d.fd, 0, 0, POSIX_FADV_WILLNEED));
	check_file(&d);
	check_totals(2 * kept);
	for (size_t i = 8; i < nr; i += 32) {
		EXPECT_SHARED(&c, i, &d, i);
		EXPECT_SHARED(&c, i + 15, &d, i + 15);
	}
	file_close(&c);
	file_close(&d);
}

/* Faults on one page map its neighbours too, shared or not. */
TEST_F(merge, fault_around)
{
	const size_t nr = 16;	/* 64 KiB, the default of fault-around */
	unsigned char vec[16], *map, *area;
	size_t mapped = 0;
	struct file c, d;

	file_create(_metadata, &c, self->dir, "c", nr * PAGE, 3);
	file_create(_metadata, &d, self->dir, "d", nr * PAGE, 3);
	merge_all(&c, &d);
	area = mmap(NULL, 3 * nr * PAGE, PROT_NONE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, area);
	map = (unsigned char *)(((uintptr_t)area + nr * PAGE - 1) &
				~(nr * PAGE - 1));
	ASSERT_EQ(map, mmap(map, nr * PAGE, PROT_READ, MAP_SHARED | MAP_FIXED,
			    d.fd, 0));
	touch(map + 5 * PAGE, 1);
	for (size_t i = 0; i < nr; i++)
		mapped += pfn_of(map + i * PAGE) != 0;
	EXPECT_EQ(nr, mapped);
	ASSERT_EQ(0, mincore(map, nr * PAGE, vec));
	check_map(&d, map);
	check_totals(2 * nr);
	munmap(area, 3 * nr * PAGE);
	file_close(&c);
	file_close(&d);
}

MANUAL_TEST_MAIN
