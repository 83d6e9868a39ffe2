// SPDX-License-Identifier: GPL-2.0
/*
 * Large folios: merged as a whole where that is possible, else split, and never
 * passed over.  KSM_EXT_LARGE=1 lets the tests of break.c run with them, too.
 */
#include <pthread.h>

#include "ksm_ext_test.h"

#define NR	16		/* pages of a folio */
#define NPAGES	(2 * NR)

FIXTURE(large) {
	char dir[MAX_PATH];
	struct file a, b;	/* twins of two large folios each, not merged */
	unsigned char *junk;
};

/*
 * Write an empty file anew, @chunk pages at a time.  A write makes a folio of
 * its size, where the file system has such.
 */
static void write_chunks(struct __test_metadata *_metadata,
			 const struct file *f, size_t chunk)
{
	for (size_t i = 0; i < NPAGES; i += chunk)
		ASSERT_EQ(chunk * PAGE, pwrite(f->fd, f->want + i * PAGE,
					       chunk * PAGE, i * PAGE));
	ASSERT_EQ(0, fsync(f->fd));
}

/* Make a file of equal halves. */
static void halves(struct __test_metadata *_metadata, struct file *f,
		   const char *dir, const char *name, size_t chunk)
{
	file_create(_metadata, f, dir, name, 0, 1);
	f->size = NPAGES * PAGE;
	f->want = realloc(f->want, f->size);
	fill(f->want, NR * PAGE, 1);
	memcpy(f->want + NR * PAGE, f->want, NR * PAGE);
	write_chunks(_metadata, f, chunk);
}

FIXTURE_SETUP(large)
{
	test_begin(_metadata, self->dir);
	self->junk = page_buffer(_metadata, NR * PAGE);
	fill(self->junk, NR * PAGE, 99);
	halves(_metadata, &self->a, self->dir, "a", NR);
	halves(_metadata, &self->b, self->dir, "b", NR);
	if (!in_large_folio(_metadata, &self->a, NPAGES - 1))
		SKIP(return, "the file system has no large folios");
}

FIXTURE_TEARDOWN(large)
{
	file_close(&self->a);
	file_close(&self->b);
	free(self->junk);
	test_end(_metadata, self->dir);
}

static void __check_shared(struct __test_metadata *_metadata,
			   const struct file *a, const struct file *b,
			   size_t first, size_t end, int line)
{
	for (size_t i = 0; i < NPAGES; i++) {
		bool want = control ? false : i >= first && i < end;

		EXPECT_EQ(want, same_page(_metadata, a, i, b, i)) {
			TH_LOG("line %d: page %zu", line, i);
		}
	}
	__check_file(_metadata, a, line);
	__check_file(_metadata, b, line);
}

/* Pages [first, end) of both files share, each at its place; others do not. */
#define check_shared(first, end)					\
	__check_shared(_metadata, &self->a, &self->b, first, end, __LINE__)

#define EXPECT_LARGE(f, i, want)					\
	EXPECT_EQ(want, in_large_folio(_metadata, f, i))		\
		TH_LOG("page %zu of %s", (size_t)(i), (f)->path)

static void store(struct __test_metadata *_metadata, struct file *f, size_t off,
		  const void *buf, size_t len)
{
	ASSERT_EQ(len, pwrite(f->fd, buf, len, off));
	model_write(_metadata, f, off, buf, len);
}

/* The folios stay large, with one alias each, and cost less metadata. */
TEST_F(large, whole)
{
	merge_all(&self->a, &self->b);
	check_totals(2 * NPAGES);
	EXPECT_COUNTER("pages_shared", NPAGES);
	check_shared(0, NPAGES);
	for (size_t i = 0; i < NPAGES; i++) {
		EXPECT_LARGE(&self->a, i, true);
		EXPECT_LARGE(&self->b, i, true);
	}
	check_disk(&self->a);
	check_disk(&self->b);
}

/* Who shared with a page that moves to another root moves, too. */
TEST_F(large, two_roots)
{
	struct file *a = &self->a, c, d;

	halves(_metadata, &c, self->dir, "c", NR);
	halves(_metadata, &d, self->dir, "d", NR);
	merge_all(a, &self->b);
	merge_all(&c, &d);
	EXPECT_COUNTER("pages_shared", 2 * NPAGES);
	merge_all(a, &c);
	check_totals(4 * NPAGES);
	EXPECT_COUNTER("pages_shared", NPAGES);
	check_shared(0, NPAGES);
	EXPECT_SHARED(a, NR + 1, &d, NR + 1);
	EXPECT_LARGE(&d, 0, true);
	store(_metadata, &d, PAGE, self->junk, PAGE);
	check_file(&c);
	check_file(&d);
	file_close(&c);
	file_close(&d);
	check_shared(0, NPAGES);
}

/* But for a folio of which somebody has a part locked into memory. */
TEST_F(large, two_roots_mlocked)
{
	struct file *a = &self->a, c, d;
	unsigned char *map;

	SKIP_IF_CONTROL();
	halves(_metadata, &c, self->dir, "c", NR);
	halves(_metadata, &d, self->dir, "d", NR);
	merge_all(a, &self->b);
	merge_all(&c, &d);
	map = file_map(_metadata, &d, PROT_READ, MAP_SHARED);
	check_map(&d, map);
	ASSERT_EQ(0, mlock2(map + 3 * PAGE, PAGE, MLOCK_ONFAULT));
	EXPECT_SHARED(&c, 3, &d, 3);
	merge_all(a, &c);
	check_totals(4 * NPAGES);
	EXPECT_APART(a, 3, &d, 3);
	EXPECT_SHARED(a, NR + 1, &d, NR + 1);
	check_map(&d, map);
	ASSERT_EQ(0, munlock(map + 3 * PAGE, PAGE));
	merge_all(a, &d);
	EXPECT_SHARED(a, 3, &d, 3);
	check_map(&d, map);
	file_unmap(&d, map);
	file_close(&c);
	file_close(&d);
}

/* Every page at its place, however one looks: odd reads, fault-around. */
TEST_F(large, places)
{
	unsigned char buf[3 * PAGE];
	unsigned char *map;

	/* No two pages may be equal here. */
	store(_metadata, &self->a, NR * PAGE, self->junk, NR * PAGE);
	store(_metadata, &self->b, NR * PAGE, self->junk, NR * PAGE);
	ASSERT_EQ(0, fsync(self->a.fd));
	ASSERT_EQ(0, fsync(self->b.fd));
	merge_all(&self->a, &self->b);
	check_totals(2 * NPAGES);
	for (size_t i = 0; i < NPAGES; i++) {
		size_t off = i * PAGE + 777;
		size_t len = MIN(sizeof(buf), NPAGES * PAGE - off);

		ASSERT_EQ(len, pread(self->b.fd, buf, len, off));
		EXPECT_EQ(0, memcmp(buf, self->b.want + off, len)) {
			TH_LOG("3 pages from byte %zu", off);
		}
		/* A mapping that begins, and ends, within a folio */
		map = mmap(NULL, MIN(3, NPAGES - i) * PAGE, PROT_READ,
			   MAP_SHARED, self->b.fd, i * PAGE);
		ASSERT_NE(MAP_FAILED, map);
		EXPECT_EQ(0, memcmp(map, self->b.want + i * PAGE,
				    MIN(3, NPAGES - i) * PAGE)) {
			TH_LOG("3 pages mapped from page %zu", i);
		}
		munmap(map, MIN(3, NPAGES - i) * PAGE);
	}
}

/* One folio of a file with the other one of the same file, and of another. */
TEST_F(large, other_offset)
{
	ASSERT_EQ(NR, merge_pages(_metadata, &self->a, 0, &self->a, NR, NR));
	ASSERT_EQ(NR, merge_pages(_metadata, &self->a, 0, &self->b, NR, NR));
	check_totals(3 * NR);
	EXPECT_COUNTER("pages_shared", NR);
	for (size_t i = 0; i < NR; i++) {
		EXPECT_SHARED(&self->a, i, &self->a, NR + i);
		EXPECT_SHARED(&self->a, i, &self->b, NR + i);
		EXPECT_LARGE(&self->a, NR + i, true);
	}
	check_file(&self->a);
	check_file(&self->b);
}

/* The policy asks for some pages only: the folios are split. */
TEST_F(large, some_pages)
{
	ASSERT_EQ(5, merge_pages(_metadata, &self->a, 3, &self->b, 3, 5));
	check_totals(2 * 5);
	check_shared(3, 8);
	EXPECT_LARGE(&self->a, NR, true);
}

/* Some pages are equal and others are not: those that are get merged. */
TEST_F(large, some_equal)
{
	store(_metadata, &self->a, 4 * PAGE, self->junk, 1);
	ASSERT_EQ(0, fsync(self->a.fd));
	EXPECT_EQ(4, merge_pages(_metadata, &self->a, 0, &self->b, 0, NR));
	EXPECT_EQ(NR - 5, merge_pages(_metadata, &self->a, 5, &self->b, 5,
				      NR - 5));
	check_totals(2 * (NR - 1));
	EXPECT_APART(&self->a, 4, &self->b, 4);
	check_file(&self->a);
	check_file(&self->b);
}

/* A file of small folios meets large ones, shared or not. */
TEST_F(large, meets_small)
{
	struct file c;

	halves(_metadata, &c, self->dir, "c", 1);
	merge_all(&self->a, &self->b);
	merge_all(&self->a, &c);
	merge_all(&self->a, &self->b);
	check_totals(3 * NPAGES);
	EXPECT_COUNTER("pages_shared", NPAGES);
	for (size_t i = 0; i < NPAGES; i++) {
		EXPECT_SHARED(&self->a, i, &c, i);
		EXPECT_SHARED(&self->b, i, &c, i);
	}
	check_file(&self->a);
	check_file(&self->b);
	check_file(&c);
	file_close(&c);
}

/* Two pages of one folio are equal, and so are two that files share. */
TEST_F(large, within_folio)
{
	memset(self->junk, 0x5a, NR * PAGE);
	store(_metadata, &self->a, 0, self->junk, NR * PAGE);
	store(_metadata, &self->b, 0, self->junk, NR * PAGE);
	ASSERT_EQ(0, fsync(self->a.fd));
	ASSERT_EQ(0, fsync(self->b.fd));
	ASSERT_EQ(NR, merge_pages(_metadata, &self->a, 0, &self->b, 0, NR));
	EXPECT_COUNTER("pages_shared", NR);

	EXPECT_EQ(1, merge_pages(_metadata, &self->a, 2, &self->b, 5, 1));
	EXPECT_SHARED(&self->a, 2, &self->b, 5);
	EXPECT_EQ(1, merge_pages(_metadata, &self->a, 2, &self->a, 7, 1));
	EXPECT_SHARED(&self->a, 2, &self->a, 7);
	check_file(&self->a);
	check_file(&self->b);
}

/* Two pages of one folio that nobody shares: it is split for them. */
TEST_F(large, within_own_folio)
{
	store(_metadata, &self->a, 7 * PAGE, self->a.want + 2 * PAGE, PAGE);
	ASSERT_EQ(0, fsync(self->a.fd));
	EXPECT_EQ(1, merge_pages(_metadata, &self->a, 2, &self->a, 7, 1));
	EXPECT_SHARED(&self->a, 2, &self->a, 7);
	check_totals(2);
	check_file(&self->a);
	check_disk(&self->a);
}

/* Different pages at different places of one shared folio do not merge. */
TEST_F(large, within_folio_differ)
{
	merge_all(&self->a, &self->b);
	EXPECT_EQ(-EILSEQ, merge_pages(_metadata, &self->a, 2, &self->b, 5, 1));
	check_totals(2 * NPAGES);
	check_shared(0, NPAGES);
}

/* A folio of which a part is locked into memory does not say so. */
TEST_F(large, mlocked_part)
{
	unsigned char *map;
	long refused;

	SKIP_IF_CONTROL();
	map = file_map(_metadata, &self->b, PROT_READ, MAP_SHARED);
	ASSERT_EQ(0, mlock(map + 3 * PAGE, PAGE));
	refused = counter(_metadata, "merge/refused_mlocked");
	EXPECT_EQ(-EBUSY, merge_pages(_metadata, &self->a, 0, &self->b, 0, NR));
	EXPECT_LT(refused, counter(_metadata, "merge/refused_mlocked"));
	EXPECT_EQ(1, merge_pages(_metadata, &self->a, 5, &self->b, 5, 1));
	ASSERT_EQ(0, munlock(map + 3 * PAGE, PAGE));
	merge_all(&self->a, &self->b);
	check_map(&self->b, map);
	file_unmap(&self->b, map);
}

/* A root of three stays large when one leaves, and the last gets it back. */
TEST_F(large, leave)
{
	struct file c;

	halves(_metadata, &c, self->dir, "c", NR);
	merge_all(&self->a, &self->b);
	merge_all(&self->a, &c);
	store(_metadata, &self->a, 3 * PAGE + 5, self->junk, 10);
	check_totals(3 * NPAGES - NR);
	EXPECT_APART(&self->a, 3, &self->b, 3);
	EXPECT_SHARED(&self->b, 3, &c, 3);
	store(_metadata, &self->b, 2 * PAGE, self->junk, PAGE);
	store(_metadata, &c, 2 * PAGE + 1, self->junk, PAGE);
	check_totals(3 * NR);
	EXPECT_LARGE(&c, 2, true);
	check_file(&self->a);
	check_file(&self->b);
	check_file(&c);
	check_disk(&self->a);
	check_disk(&self->b);
	check_disk(&c);
	file_close(&c);
}

/* Truncation and holes that begin or end within a folio, and grow again */
TEST_F(large, cut)
{
	static const size_t cuts[] = {
		NR * PAGE + 3 * PAGE, NR * PAGE + 3 * PAGE + 99, NR * PAGE,
		5 * PAGE, 4 * PAGE + 4095, PAGE, 1,
	};
	unsigned char *map;

	map = file_map(_metadata, &self->a, PROT_READ, MAP_SHARED);
	for (size_t i = 0; i < ARRAY_SIZE(cuts); i++) {
		store(_metadata, &self->a, 0, self->b.want, NPAGES * PAGE);
		ASSERT_EQ(0, fsync(self->a.fd));
		merge_all(&self->b, &self->a);
		touch(map, NPAGES * PAGE);
		ASSERT_EQ(0, ftruncate(self->a.fd, cuts[i]));
		ASSERT_EQ(0, ftruncate(self->a.fd, NPAGES * PAGE));
		model_zero(&self->a, cuts[i], NPAGES * PAGE - cuts[i]);
		check_map(&self->a, map);
		check_file(&self->a);
		check_file(&self->b);
		check_disk(&self->a);
	}
	munmap(map, NPAGES * PAGE);
}

TEST_F(large, holes)
{
	static const struct {
		size_t off, len;
	} holes[] = {
		{ 3 * PAGE, PAGE }, { 0, PAGE }, { NR * PAGE - PAGE, 2 * PAGE },
		{ 5 * PAGE + 10, 20 }, { NR * PAGE, NR * PAGE },
		{ PAGE + 1, NR * PAGE },
	};
	unsigned char *map;

	map = file_map(_metadata, &self->a, PROT_READ, MAP_SHARED);
	for (size_t i = 0; i < ARRAY_SIZE(holes); i++) {
		store(_metadata, &self->a, 0, self->b.want, NPAGES * PAGE);
		ASSERT_EQ(0, fsync(self->a.fd));
		merge_all(&self->b, &self->a);
		touch(map, NPAGES * PAGE);
		ASSERT_EQ(0, fallocate(self->a.fd, FALLOC_FL_PUNCH_HOLE |
				       FALLOC_FL_KEEP_SIZE, holes[i].off,
				       holes[i].len));
		model_zero(&self->a, holes[i].off, holes[i].len);
		check_map(&self->a, map);
		check_file(&self->a);
		check_file(&self->b);
		check_disk(&self->a);
	}
	munmap(map, NPAGES * PAGE);
}

/* Who would split a folio for the sake of one file leaves it to all. */
TEST_F(large, split)
{
	unsigned char *map;

	merge_all(&self->a, &self->b);
	map = file_map(_metadata, &self->b, PROT_READ, MAP_SHARED);
	touch(map, NPAGES * PAGE);
	ASSERT_EQ(0, madvise(map + 3 * PAGE, PAGE, MADV_PAGEOUT));
	ASSERT_EQ(0, madvise(map + 5 * PAGE, 2 * PAGE, MADV_COLD));
	check_totals(2 * NPAGES);
	check_shared(0, NPAGES);
	EXPECT_LARGE(&self->b, 3, true);
	check_map(&self->b, map);
	file_unmap(&self->b, map);
}

/* Mapped by parts and as a whole, moved to another node, and reclaimed */
TEST_F(large, move)
{
	unsigned char *a, *b, *part;
	void *pages[NPAGES];
	int nodes[NPAGES], status[NPAGES];
	unsigned long before, moved = 0;

	merge_all(&self->a, &self->b);
	a = file_map(_metadata, &self->a, PROT_READ, MAP_SHARED);
	b = file_map(_metadata, &self->b, PROT_READ, MAP_PRIVATE);
	part = mmap(NULL, 4 * PAGE, PROT_READ, MAP_SHARED, self->b.fd,
		    (NR - 2) * PAGE);
	ASSERT_NE(MAP_FAILED, part);
	for (int node = 1; node >= 0; node--) {
		touch(a, NPAGES * PAGE);
		touch(b, NPAGES * PAGE);
		touch(part, 4 * PAGE);
		before = pfn_of(a);
		for (int i = 0; i < NPAGES; i++) {
			pages[i] = a + i * PAGE;
			nodes[i] = node;
		}
		if (syscall(SYS_move_pages, 0, NPAGES, pages, nodes, status,
			    4 /* MPOL_MF_MOVE_ALL */) < 0 && errno == ENODEV)
			SKIP(return, "one node only: try NUMA=2");
		moved += pfn_of(a) != before;
		for (int i = 0; i < 4; i++)
			EXPECT_EQ(pfn_of(a + (NR - 2 + i) * PAGE),
				  pfn_of(part + i * PAGE));
		check_map(&self->a, a);
		check_map(&self->b, b);
		EXPECT_EQ(0, memcmp(part, self->b.want + (NR - 2) * PAGE,
				    4 * PAGE));
		check_shared(0, NPAGES);
	}
	EXPECT_LT(0, moved);
	check_totals(2 * NPAGES);

	ASSERT_EQ(0, madvise(a, NPAGES * PAGE, MADV_PAGEOUT));
	check_map(&self->a, a);
	check_map(&self->b, b);
	munmap(part, 4 * PAGE);
	file_unmap(&self->b, b);
	file_unmap(&self->a, a);
}

static void *write_one_byte(void *arg)
{
	struct file *f = arg;

	return (void *)(pwrite(f->fd, f->want + 3 * PAGE, 1, 3 * PAGE) - 1);
}

/* A page is shared as one of many, and while it is copied for that alone. */
TEST_F(large, race_of_sizes)
{
	struct file *a = &self->a, *b = &self->b, c;
	pthread_t writer;
	void *failed;

	halves(_metadata, &c, self->dir, "c", 1);
	for (int i = 0; i < 10; i++) {
		ASSERT_EQ(0, ftruncate(a->fd, 0));
		ASSERT_EQ(0, ftruncate(b->fd, 0));
		write_chunks(_metadata, a, NR);
		write_chunks(_metadata, b, NR);
		merge_all(a, b);
		ASSERT_EQ(0, pthread_create(&writer, NULL, write_one_byte, a));
		usleep(2000);
		if (!control)
			try_merge(_metadata, &c, 3, a, 3, 1);
		pthread_join(writer, &failed);
		EXPECT_EQ(NULL, failed);
		check_file(a);
		check_file(b);
		check_file(&c);
		ASSERT_EQ(0, fsync(a->fd));
		check_disk(a);
	}
	file_close(&c);
}

struct direct_write {
	int fd;
	const unsigned char *buf;
	ssize_t n;
};

static void *write_directly(void *arg)
{
	struct direct_write *w = arg;

	w->n = pwrite(w->fd, w->buf, NPAGES * PAGE, 0);
	return NULL;
}

/*
 * While a direct write goes on somebody reads the old bytes, which are shared as
 * a whole, and then a part of them alone while the write drops them.
 */
TEST_F(large, direct_write)
{
	unsigned char *map, *buf = page_buffer(_metadata, NPAGES * PAGE);
	struct manual_args whole = { .nr = NPAGES }, part = { .nr = 1 };
	struct file *a = &self->a, *b = &self->b, c;
	pthread_t writer;

	halves(_metadata, &c, self->dir, "c", 1);
	ASSERT_EQ(0, ftruncate(b->fd, 0));
	write_chunks(_metadata, b, NPAGES);
	if (!control) {
		whole.dst = file_id(_metadata, b);
		part.dst = file_id(_metadata, &c);
		whole.src = part.src = file_id(_metadata, a);
	}
	for (int i = 0; i < 10; i++) {
		struct direct_write w = {
			.fd = open(a->path, O_RDWR | O_DIRECT), .buf = buf,
		};

		ASSERT_LE(0, w.fd);
		memcpy(a->want, b->want, NPAGES * PAGE);
		write_chunks(_metadata, a, NPAGES);
		ASSERT_EQ(0, posix_fadvise(a->fd, 0, 0, POSIX_FADV_DONTNEED));
		map = file_map(_metadata, a, PROT_READ, MAP_SHARED);
		/* a read fault makes one folio then */
		ASSERT_EQ(0, madvise(map, NPAGES * PAGE, MADV_HUGEPAGE));
		fill(buf, NPAGES * PAGE, 100 + i);
		ASSERT_EQ(0, pthread_create(&writer, NULL, write_directly, &w));
		usleep(2000);
		touch(map, PAGE);
		if (!control)
			manual_call(manual->progs.manual_merge, &whole);
		usleep(35000);
		if (!control)
			manual_call(manual->progs.manual_merge, &part);
		pthread_join(writer, NULL);
		ASSERT_EQ(NPAGES * PAGE, w.n);
		close(w.fd);
		model_write(_metadata, a, 0, buf, NPAGES * PAGE);
		check_map(a, map);
		file_unmap(a, map);
		check_file(a);
		check_file(b);
		check_file(&c);
	}
	file_close(&c);
	free(buf);
}

/* A bad page: all of the folio is read again, and its memory is given up. */
TEST_F(large, memory_failure)
{
	unsigned char *a, *b;
	unsigned long pfn;

	merge_all(&self->a, &self->b);
	a = file_map(_metadata, &self->a, PROT_READ, MAP_SHARED);
	b = file_map(_metadata, &self->b, PROT_READ, MAP_SHARED);
	touch(a, NPAGES * PAGE);
	touch(b, NPAGES * PAGE);
	pfn = pfn_of(a);
	ASSERT_EQ(0, madvise(a + 2 * PAGE, PAGE, MADV_HWPOISON));
	for (size_t i = 0; i < NR; i++) {
		uint64_t flags = page_entry(_metadata, "kpageflags", pfn + i);

		EXPECT_EQ(1ULL << KPF_HWPOISON,
			  flags & (1ULL << KPF_HWPOISON | 1ULL << KPF_LRU));
		EXPECT_EQ(0, page_entry(_metadata, "kpagecgroup", pfn + i));
	}
	check_map(&self->a, a);
	check_map(&self->b, b);
	check_totals(2 * NR);
	store(_metadata, &self->a, 2 * PAGE, self->junk, NR / 2 * PAGE);
	check_map(&self->a, a);
	check_map(&self->b, b);
	check_file(&self->a);
	check_file(&self->b);
	file_unmap(&self->a, a);
	file_unmap(&self->b, b);
}

/* Each gets its own folio back. */
TEST_F(large, unmerge)
{
	merge_all(&self->a, &self->b);
	ASSERT_EQ(0, write_text(KSM_EXT_SYSFS "run", "2"));
	check_totals(0);
	ASSERT_EQ(0, write_text(KSM_EXT_SYSFS "run", "1"));
	for (size_t i = 0; i < NPAGES; i++)
		EXPECT_APART(&self->a, i, &self->b, i);
	check_file(&self->a);
	check_file(&self->b);
}

MANUAL_TEST_MAIN
