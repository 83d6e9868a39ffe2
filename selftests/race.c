// SPDX-License-Identifier: GPL-2.0
/*
 * Races: files with equal contents are written, read, cut and pushed out of
 * memory by several threads while one merges their pages as fast as it can.
 *
 * Every page of every file goes through states 0, 1, 2, ... and its one writer
 * publishes when it starts and when it has finished with each.  A reader takes
 * the last state that was finished before it looks (low) and the last one that
 * was started after it looked (high): whatever it saw, each single byte must
 * belong to a state from low to high.  Less is stale, more or other is wrong.
 * Bytes are judged one by one since nobody promises more: ext4 reads without
 * the lock that writes take, and copying may go byte by byte.
 *
 * All files follow the same schedule and meet after each round with clean,
 * equal pages, so that there is much to merge, and the next round breaks it.
 * Rounds are counted, not timed.  KSM_EXT_ROUNDS sets how many, KSM_EXT_SEED
 * repeats a run as far as threads can be repeated.
 */
#include <libaio.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/random.h>
#include <linux/falloc.h>

#include "ksm_ext_test.h"

#define NFILES		4
#define NPAGES		8
#define SIZE		(NPAGES * PAGE)
#define NREADERS	2
#define ROUNDS		16
#define MPOL_MF_MOVE_ALL 4

/* Ways to write.  Those of a variant are taken in turn. */
#define WRITE		(1 << 0)	/* write(2), in one piece or two */
#define STORE		(1 << 1)	/* through one of two mappings */
#define DIRECT		(1 << 2)	/* O_DIRECT */
#define AIO		(1 << 3)	/* O_DIRECT, completed by somebody else */
#define NWAYS		4
/* Every fourth round makes holes instead. */
#define PUNCH		(1 << 4)
#define TRUNCATE	(1 << 5)
/* Readers use O_DIRECT, too. */
#define DIRECT_READ	(1 << 6)
/* What else goes on. */
#define FADVISE		(1 << 7)
#define DROP_CACHES	(1 << 8)
#define PAGEOUT		(1 << 9)
#define COMPACT		(1 << 10)
#define MOVE		(1 << 11)
#define UNMERGE		(1 << 12)
/* A neighbour makes a file's only mapping longer and shorter. */
#define EXTEND		(1 << 13)
/* That is mapped again in its place. */
#define REMAP		(1 << 14)

#define HOLES		(PUNCH | TRUNCATE)
#define ONE_MAPPING	(EXTEND | REMAP)
#define DISTURB		(FADVISE | DROP_CACHES | PAGEOUT | COMPACT | MOVE | \
			 UNMERGE | EXTEND | REMAP)

struct page_state {
	atomic_ulong started;
	atomic_ulong done;
};

/* The first thing that went wrong. */
struct failure {
	bool seen;
	char what[160];
};

struct race {
	char dir[MAX_PATH];
	unsigned int what;
	unsigned long rounds;
	unsigned int seed;
	struct file files[NFILES];
	int direct[NFILES];
	io_context_t aio[NFILES];
	unsigned char *map[NFILES][2];
	struct page_state state[NFILES][NPAGES];
	unsigned char mix[NPAGES][PAGE];	/* what tells bytes apart */

	atomic_bool stop;
	pthread_barrier_t round_end;
	pthread_mutex_t lock;		/* passes, failure */
	pthread_cond_t passed;
	unsigned long passes;		/* of the merging thread */
	struct failure failure;
};

struct worker {
	struct race *r;
	unsigned int nr;
	unsigned int rand;
};

static void __attribute__((format(printf, 2, 3)))
fail(struct race *r, const char *fmt, ...)
{
	va_list args;

	pthread_mutex_lock(&r->lock);
	if (!r->failure.seen) {
		va_start(args, fmt);
		vsnprintf(r->failure.what, sizeof(r->failure.what), fmt, args);
		va_end(args);
		r->failure.seen = true;
	}
	pthread_mutex_unlock(&r->lock);
	r->stop = true;
}

static bool is_hole(const struct race *r, unsigned long state)
{
	return (r->what & HOLES) && state % 4 == 3;
}

static void fill_state(const struct race *r, unsigned int page,
		       unsigned long state, unsigned char *buf)
{
	for (size_t i = 0; i < PAGE; i++)
		buf[i] = is_hole(r, state) ? 0 : r->mix[page][i] + state;
}

/* ---- readers ---- */

static void judge(struct race *r, unsigned int file, unsigned int page,
		  const char *how, const unsigned char *buf,
		  unsigned long low, unsigned long high)
{
	bool zero_ok = false;

	for (unsigned long s = low; s <= high; s++)
		zero_ok |= is_hole(r, s);
	for (size_t i = 0; i < PAGE; i++) {
		unsigned char ahead = buf[i] - r->mix[page][i] - low;

		if (ahead <= high - low && !is_hole(r, low + ahead))
			continue;
		if (zero_ok && !buf[i])
			continue;
		fail(r, "file %u page %u byte %zu by %s: 0x%02x, state %d, not %lu to %lu%s",
		     file, page, i, how, buf[i], (signed char)ahead + (int)low,
		     low, high, zero_ok ? " or a hole" : "");
		return;
	}
}

static void *reader(void *arg)
{
	struct worker *w = arg;
	struct race *r = w->r;
	unsigned char *buf = aligned_alloc(PAGE, PAGE);

	while (!r->stop) {
		unsigned int x = rand_r(&w->rand);
		unsigned int file = x % NFILES, page = x / 8 % NPAGES;
		struct page_state *state = &r->state[file][page];
		unsigned char *map = r->map[file][x / 256 % 2] + page * PAGE;
		bool mapped = x / 512 % 2 && !(r->what & TRUNCATE);
		bool direct = x / 8192 % 2 && (r->what & DIRECT_READ);
		const char *how = mapped ? "mapping" : direct ? "direct read" :
				  "read";
		unsigned long low;

		/* sometimes with a page table entry, sometimes without */
		if (x / 1024 % 8 == 0)
			madvise(map, PAGE, MADV_DONTNEED);
		low = state->done;
		if (mapped) {
			memcpy(buf, map, PAGE);
		} else {
			int fd = direct ? r->direct[file] : r->files[file].fd;
			ssize_t n = pread(fd, buf, PAGE, page * PAGE);

			if (n < 0) {
				fail(r, "pread: %s", strerror(errno));
				break;
			}
			/* beyond the end, until the file grows again */
			memset(buf + n, 0, PAGE - n);
		}
		judge(r, file, page, how, buf, low, state->started);
	}
	free(buf);
	return NULL;
}

/* ---- writers ---- */

static bool make_hole(struct worker *w, unsigned int page)
{
	struct race *r = w->r;
	int fd = r->files[w->nr].fd;
	const int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
	size_t off = page * PAGE, part = rand_r(&w->rand) % 2 ? 0 : 1500;

	if (r->what & PUNCH) {
		return (!part || !fallocate(fd, mode, off, part)) &&
		       !fallocate(fd, mode, off + part, PAGE - part);
	}
	/* Pages behind this one are holes already. */
	return (!part || (!ftruncate(fd, off + part) &&
			  !ftruncate(fd, SIZE))) &&
	       !ftruncate(fd, off) && !ftruncate(fd, SIZE);
}

static bool aio_write(io_context_t aio, int fd, unsigned char *buf, size_t off)
{
	struct iocb cb, *cbs = &cb;
	struct io_event event;

	io_prep_pwrite(&cb, fd, buf, PAGE, off);
	return io_submit(aio, 1, &cbs) == 1 &&
	       io_getevents(aio, 1, 1, &event, NULL) == 1 && event.res == PAGE;
}

static bool write_page(struct worker *w, unsigned int page,
		       unsigned char *buf)
{
	struct race *r = w->r;
	int fd = r->files[w->nr].fd;
	size_t off = page * PAGE, part;
	unsigned int way;

	do {
		way = 1 << rand_r(&w->rand) % NWAYS;
	} while (!(way & r->what));

	switch (way) {
	case WRITE:
		part = rand_r(&w->rand) % 2 ? 0 : rand_r(&w->rand) % PAGE;
		return (!part || pwrite(fd, buf, part, off) == part) &&
		       pwrite(fd, buf + part, PAGE - part, off + part) ==
		       PAGE - part;
	case STORE:
		memcpy(r->map[w->nr][rand_r(&w->rand) % 2] + off, buf, PAGE);
		return true;
	case AIO:
		return aio_write(r->aio[w->nr], r->direct[w->nr], buf, off);
	default:
		return pwrite(r->direct[w->nr], buf, PAGE, off) == PAGE;
	}
}

/* Let the merging thread see all pages, clean and equal. */
static void wait_for_merges(struct race *r)
{
	unsigned long want;

	pthread_mutex_lock(&r->lock);
	want = r->passes + 2;
	while (r->passes < want && !r->failure.seen)
		pthread_cond_wait(&r->passed, &r->lock);
	pthread_mutex_unlock(&r->lock);
}

static void *writer(void *arg)
{
	struct worker *w = arg;
	struct race *r = w->r;
	unsigned char *buf = aligned_alloc(PAGE, PAGE);

	for (unsigned long s = 1; s <= r->rounds; s++) {
		unsigned int first = rand_r(&w->rand) % NPAGES;

		for (unsigned int i = 0; i < NPAGES && !r->stop; i++) {
			unsigned int page = (first + 5 * i) % NPAGES;
			struct page_state *state;
			bool ok;

			/* what is cut off comes from the end */
			if (is_hole(r, s) && (r->what & TRUNCATE))
				page = NPAGES - 1 - i;
			state = &r->state[w->nr][page];
			state->started = s;
			if (is_hole(r, s)) {
				ok = make_hole(w, page);
			} else {
				fill_state(r, page, s, buf);
				ok = write_page(w, page, buf);
			}
			if (!ok)
				fail(r, "file %u page %u: %s", w->nr, page,
				     strerror(errno));
			state->done = s;
		}
		if (fsync(r->files[w->nr].fd))
			fail(r, "fsync: %s", strerror(errno));
		pthread_barrier_wait(&r->round_end);
		if (w->nr == 0)
			wait_for_merges(r);
		pthread_barrier_wait(&r->round_end);
	}
	free(buf);
	return NULL;
}

/* ---- those who make it hard ---- */

struct merger {
	struct race *r;
	__u64 id[NFILES];
};

static void merge_pair(struct merger *m, unsigned int dst, unsigned int src,
		       unsigned int shift)
{
	struct manual_args args = { .dst = m->id[dst], .src = m->id[src] };
	unsigned int i = 0;
	int ret;

	while (i + shift < NPAGES) {
		args.dst_index = i;
		args.src_index = i + shift;
		args.nr = NPAGES - shift - i;
		ret = manual_call(manual->progs.manual_merge, &args);
		i += ret > 0 ? ret : 1;
	}
}

static void *merger(void *arg)
{
	struct merger *m = arg;
	struct race *r = m->r;

	while (!r->stop) {
		if (control) {
			sched_yield();
		} else {
			/* Two roots become one, too. */
			merge_pair(m, 0, 1, 0);
			merge_pair(m, 2, 3, 0);
			merge_pair(m, 1, 3, 0);
			merge_pair(m, 2, 0, 0);
			/* holes are equal wherever they are */
			if (r->what & HOLES)
				merge_pair(m, 1, 1, 1);
		}
		pthread_mutex_lock(&r->lock);
		r->passes++;
		pthread_cond_broadcast(&r->passed);
		pthread_mutex_unlock(&r->lock);
	}
	return NULL;
}

static void move_all(struct race *r, int file, int node)
{
	int status[NPAGES], nodes[NPAGES];
	void *addr[NPAGES];

	for (size_t i = 0; i < NPAGES; i++) {
		addr[i] = r->map[file][0] + i * PAGE;
		nodes[i] = node;
	}
	syscall(SYS_move_pages, 0, (unsigned long)NPAGES, addr, nodes, status,
		MPOL_MF_MOVE_ALL);
}

/*
 * While the bounds of a mapping move, or when one is unmapped, the file is for
 * a moment not among those that are mapped.
 */
static void extend(struct race *r, int file)
{
	void *end = r->map[file][0] + SIZE;

	if (mmap(end, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
		 r->files[file].fd, SIZE) != end || munmap(end, SIZE))
		fail(r, "extending a mapping: %s", strerror(errno));
}

static void remap(struct race *r, int file)
{
	void *map = r->map[file][0];

	if (mmap(map, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
		 r->files[file].fd, 0) != map)
		fail(r, "mapping again: %s", strerror(errno));
}

static void *disturber(void *arg)
{
	struct merger *m = arg;
	struct race *r = m->r;

	for (unsigned int i = 0; !r->stop; i++) {
		int file = i % NFILES, fd = r->files[file].fd;

		if (r->what & FADVISE)
			posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
		if (r->what & PAGEOUT)
			madvise(r->map[file][i / NFILES % 2], SIZE,
				MADV_PAGEOUT);
		if (r->what & DROP_CACHES)
			write_text("/proc/sys/vm/drop_caches", "1");
		if (r->what & COMPACT)
			write_text("/proc/sys/vm/compact_memory", "1");
		if (r->what & MOVE)
			move_all(r, file, i / NFILES % 2);
		if (r->what & EXTEND)
			extend(r, file);
		if (r->what & REMAP)
			remap(r, file);
		if ((r->what & UNMERGE) && !control) {
			struct manual_args args = {
				.dst = m->id[file],
				.dst_index = i % NPAGES,
				.nr = 1,
			};

			manual_call(manual->progs.manual_unmerge, &args);
		}
		sched_yield();
	}
	return NULL;
}

/* ---- the test ---- */

FIXTURE(race) {
	struct race *r;
};

FIXTURE_VARIANT(race) {
	unsigned int what;
};

FIXTURE_VARIANT_ADD(race, write) { WRITE | STORE };
FIXTURE_VARIANT_ADD(race, direct) { WRITE | DIRECT };
FIXTURE_VARIANT_ADD(race, direct_read) { WRITE | STORE | DIRECT_READ };
FIXTURE_VARIANT_ADD(race, aio) { WRITE | STORE | AIO | DIRECT_READ };
FIXTURE_VARIANT_ADD(race, punch) { WRITE | STORE | PUNCH };
FIXTURE_VARIANT_ADD(race, truncate) { WRITE | DIRECT | TRUNCATE };
FIXTURE_VARIANT_ADD(race, fadvise) { WRITE | STORE | FADVISE };
FIXTURE_VARIANT_ADD(race, drop_caches) { WRITE | STORE | DROP_CACHES };
FIXTURE_VARIANT_ADD(race, pageout) { WRITE | STORE | PAGEOUT };
FIXTURE_VARIANT_ADD(race, compact) { WRITE | STORE | COMPACT };
FIXTURE_VARIANT_ADD(race, move) { WRITE | STORE | MOVE };
FIXTURE_VARIANT_ADD(race, unmerge) { WRITE | STORE | UNMERGE };
FIXTURE_VARIANT_ADD(race, extend) { WRITE | DIRECT | EXTEND };
FIXTURE_VARIANT_ADD(race, remap) { WRITE | DIRECT | REMAP };
FIXTURE_VARIANT_ADD(race, everything) {
	WRITE | STORE | DIRECT | PUNCH | FADVISE | PAGEOUT | UNMERGE
};

/* Where there is room for another one behind it. */
static unsigned char *map_file(struct __test_metadata *_metadata,
			       struct race *r, struct file *f)
{
	unsigned char *area;

	if (!(r->what & ONE_MAPPING))
		return file_map(_metadata, f, PROT_READ | PROT_WRITE,
				MAP_SHARED);
	area = mmap(NULL, 2 * SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		    0);
	ASSERT_NE(MAP_FAILED, area);
	ASSERT_EQ(0, munmap(area + SIZE, SIZE));
	ASSERT_EQ(area, mmap(area, SIZE, PROT_READ | PROT_WRITE,
			     MAP_SHARED | MAP_FIXED, f->fd, 0));
	return area;
}

FIXTURE_SETUP(race)
{
	struct race *r;

	if ((variant->what & MOVE) &&
	    access("/sys/devices/system/node/node1", F_OK))
		SKIP(return, "this machine has one node only");
	r = calloc(1, sizeof(*r));
	ASSERT_NE(NULL, r);
	self->r = r;
	r->what = variant->what;
	r->rounds = number_from_env("KSM_EXT_ROUNDS", ROUNDS);
	ASSERT_EQ(sizeof(r->seed), getrandom(&r->seed, sizeof(r->seed), 0));
	r->seed = number_from_env("KSM_EXT_SEED", r->seed);
	TH_LOG("KSM_EXT_SEED=%u", r->seed);
	pthread_barrier_init(&r->round_end, NULL, NFILES);
	pthread_mutex_init(&r->lock, NULL);
	pthread_cond_init(&r->passed, NULL);
	fill(r->mix, sizeof(r->mix), r->seed);

	test_begin(_metadata, r->dir);
	for (int i = 0; i < NFILES; i++) {
		struct file *f = &r->files[i];
		char name[8];

		/* mix, byte for byte, is what state 0 looks like */
		snprintf(name, sizeof(name), "f%d", i);
		file_create(_metadata, f, r->dir, name, SIZE, r->seed);
		r->direct[i] = open(f->path, O_RDWR | O_DIRECT);
		ASSERT_LE(0, r->direct[i]);
		ASSERT_EQ(0, io_setup(1, &r->aio[i]));
		for (int j = 0; j < 2; j++)
			r->map[i][j] = j && (r->what & ONE_MAPPING) ?
				       r->map[i][0] : map_file(_metadata, r, f);
	}
}

FIXTURE_TEARDOWN(race)
{
	struct race *r = self->r;

	for (int i = 0; i < NFILES; i++) {
		for (int j = 0; j < (r->what & ONE_MAPPING ? 1 : 2); j++)
			file_unmap(&r->files[i], r->map[i][j]);
		io_destroy(r->aio[i]);
		close(r->direct[i]);
		file_close(&r->files[i]);
	}
	test_end(_metadata, r->dir);
	free(r);
}

TEST_F(race, run)
{
	struct race *r = self->r;
	struct worker workers[NFILES + NREADERS];
	pthread_t threads[NFILES + NREADERS], merging, disturbing;
	struct merger m = { .r = r };
	unsigned int seed = r->seed;
	long before = 0;

	if (!control) {
		before = all_breaks(_metadata);
		for (int i = 0; i < NFILES; i++)
			m.id[i] = file_id(_metadata, &r->files[i]);
	}
	ASSERT_EQ(0, pthread_create(&merging, NULL, merger, &m));
	if (r->what & DISTURB) {
		ASSERT_EQ(0, pthread_create(&disturbing, NULL, disturber, &m));
	}
	for (int i = 0; i < NFILES + NREADERS; i++) {
		workers[i].r = r;
		workers[i].nr = i;
		workers[i].rand = rand_r(&seed);
		ASSERT_EQ(0, pthread_create(&threads[i], NULL,
					    i < NFILES ? writer : reader,
					    &workers[i]));
	}
	for (int i = 0; i < NFILES; i++)
		pthread_join(threads[i], NULL);
	r->stop = true;
	for (int i = NFILES; i < NFILES + NREADERS; i++)
		pthread_join(threads[i], NULL);
	pthread_join(merging, NULL);
	if (r->what & DISTURB)
		pthread_join(disturbing, NULL);

	EXPECT_FALSE(r->failure.seen) {
		TH_LOG("%s (seed %u)", r->failure.what, r->seed);
	}
	if (r->failure.seen)
		return;
	for (int i = 0; i < NFILES; i++) {
		for (unsigned int p = 0; p < NPAGES; p++)
			fill_state(r, p, r->state[i][p].done,
				   r->files[i].want + p * PAGE);
		check_file(&r->files[i]);
		check_map(&r->files[i], r->map[i][0]);
		check_map(&r->files[i], r->map[i][1]);
		check_disk(&r->files[i]);
	}
	/* Had little been merged, little would be shown. */
	if (!control) {
		EXPECT_LE(r->rounds * NFILES * NPAGES / 2,
			  all_breaks(_metadata) - before);
	}
}

/* ---- direct I/O to a page that is merged and unmerged all the time ---- */

struct direct_write {
	int fd;
	const unsigned char *buf;
	atomic_bool done;
	bool ok;
};

static void *write_directly(void *arg)
{
	struct direct_write *w = arg;

	w->ok = pwrite(w->fd, w->buf, PAGE, 0) == PAGE;
	w->done = true;
	return NULL;
}

/* Whatever it finds in the slot, no old bytes are there when it returns. */
TEST(direct_unmerge)
{
	unsigned char *buf = page_buffer(_metadata, PAGE);
	struct manual_args args = { .nr = 1 };
	unsigned int meanwhile = 0;
	char dir[MAX_PATH], byte;
	pthread_t thread;
	struct file a, b;

	SKIP_IF_CONTROL();
	test_begin(_metadata, dir);
	file_create(_metadata, &a, dir, "a", PAGE, 0);
	file_create(_metadata, &b, dir, "b", PAGE, 0);
	for (unsigned int state = 1; state <= 100; state++) {
		struct direct_write w = {
			.fd = open(a.path, O_RDWR | O_DIRECT), .buf = buf,
		};

		ASSERT_LE(0, w.fd);
		merge_all(&b, &a);
		args.dst = file_id(_metadata, &a);
		args.src = file_id(_metadata, &b);
		memset(buf, state, PAGE);
		ASSERT_EQ(0, pthread_create(&thread, NULL, write_directly, &w));
		for (; !w.done; meanwhile++) {
			manual_call(manual->progs.manual_unmerge, &args);
			ASSERT_EQ(1, pread(a.fd, &byte, 1, 0));
			manual_call(manual->progs.manual_merge, &args);
		}
		pthread_join(thread, NULL);
		ASSERT_TRUE(w.ok);
		close(w.fd);
		model_write(_metadata, &a, 0, buf, PAGE);
		check_file(&a);
		check_file(&b);
		ASSERT_EQ(PAGE, pwrite(b.fd, buf, PAGE, 0));
		ASSERT_EQ(0, fsync(b.fd));
		model_write(_metadata, &b, 0, buf, PAGE);
	}
	EXPECT_LT(100, meanwhile);
	file_close(&a);
	file_close(&b);
	free(buf);
	test_end(_metadata, dir);
}

/* ---- files that grow within a page ---- */

/* Bytes that a file has, and those that are appended: none of them is 0. */
#define HEAD		100
#define GROWN		4000

struct growth {
	struct file files[2];
	atomic_bool stop;
	atomic_size_t size;	/* at least */
	struct failure failure;
	unsigned int short_reads;
};

/* What it gets was written, and it gets what was written before it asked. */
static void *tail_reader(void *arg)
{
	struct growth *g = arg;
	unsigned char buf[PAGE];

	while (!g->stop && !g->failure.seen) {
		size_t size = g->size;
		ssize_t n = pread(g->files[0].fd, buf, PAGE, 0);

		if (n < (ssize_t)size) {
			snprintf(g->failure.what, sizeof(g->failure.what),
				 "%zd bytes of %zu", n, size);
			g->failure.seen = true;
		}
		for (ssize_t i = 0; i < n && !g->failure.seen; i++) {
			if (buf[i] == g->files[0].want[i])
				continue;
			snprintf(g->failure.what, sizeof(g->failure.what),
				 "byte %zd of %zd is 0x%02x", i, n, buf[i]);
			g->failure.seen = true;
		}
		g->short_reads += n < GROWN;
	}
	return NULL;
}

/*
 * Who looks a page up before bytes are appended to it, and how long the file is
 * after that, must not take what the shared page has there for these bytes.
 */
TEST(append)
{
	unsigned long rounds = 20 * number_from_env("KSM_EXT_ROUNDS", ROUNDS);
	struct growth *g = calloc(1, sizeof(*g));
	struct file *f = g->files;
	char dir[MAX_PATH];
	pthread_t thread;

	test_begin(_metadata, dir);
	for (int i = 0; i < 2; i++) {
		file_create(_metadata, &f[i], dir, i ? "b" : "a", GROWN, 7);
		for (size_t j = 0; j < GROWN; j++)
			f[i].want[j] = 1 + j % 251;
	}
	for (unsigned long round = 0; round < rounds; round++) {
		g->stop = false;
		g->size = HEAD;
		for (int i = 0; i < 2; i++) {
			ASSERT_EQ(0, ftruncate(f[i].fd, 0));
			ASSERT_EQ(HEAD, pwrite(f[i].fd, f[i].want, HEAD, 0));
			ASSERT_EQ(0, fsync(f[i].fd));
		}
		ASSERT_EQ(1, merge_pages(_metadata, &f[1], 0, &f[0], 0, 1));
		ASSERT_EQ(0, pthread_create(&thread, NULL, tail_reader, g));
		sched_yield();
		for (size_t size = HEAD; size < GROWN; size += 100) {
			ASSERT_EQ(100, pwrite(f[0].fd, f[0].want + size, 100,
					      size));
			g->size = size + 100;
		}
		g->stop = true;
		pthread_join(thread, NULL);
		ASSERT_FALSE(g->failure.seen) {
			TH_LOG("round %lu: %s", round, g->failure.what);
		}
	}
	EXPECT_LT(0, g->short_reads);
	file_close(&f[0]);
	file_close(&f[1]);
	test_end(_metadata, dir);
	free(g);
}

/* ---- a page that is written to while its mapping goes ---- */

struct remap {
	struct file files[2];
	unsigned char *map;
	pthread_barrier_t go;
	atomic_bool stop, gone;
	atomic_bool pause, paused;	/* who reads the page keeps it busy */
	atomic_ulong reads;
	atomic_uchar written;	/* the last write to have returned */
	struct failure failure;
};

/* By the TLB of its processor as long as that has it: it does nothing else. */
static void *remap_reader(void *arg)
{
	struct remap *r = arg;

	while (!r->stop && !r->failure.seen) {
		unsigned char low = r->written, byte;

		r->paused = r->pause;
		if (r->paused)
			continue;
		byte = *(volatile unsigned char *)r->map;

		if ((signed char)(byte - low) < 0) {
			snprintf(r->failure.what, sizeof(r->failure.what),
				 "byte of write %u after write %u", byte, low);
			r->failure.seen = true;
		}
		r->reads++;
	}
	return NULL;
}

static void *remapper(void *arg)
{
	struct remap *r = arg;

	for (;;) {
		pthread_barrier_wait(&r->go);
		if (r->stop)
			return NULL;
		mmap(r->map, PAGE, PROT_READ, MAP_SHARED | MAP_FIXED,
		     r->files[0].fd, 0);
		r->gone = true;
	}
}

/*
 * munmap() takes a mapping from its file before it flushes TLBs: who writes in
 * between finds no mapping, and yet nobody may read the old page any more.
 */
TEST(remap_write)
{
	unsigned long rounds = 10 * number_from_env("KSM_EXT_ROUNDS", ROUNDS);
	struct remap *r = calloc(1, sizeof(*r));
	unsigned char *buf = page_buffer(_metadata, PAGE);
	struct file *f = r->files;
	pthread_t threads[2];
	char dir[MAX_PATH];

	test_begin(_metadata, dir);
	for (int i = 0; i < 2; i++)
		file_create(_metadata, &f[i], dir, i ? "b" : "a", PAGE, 7);
	r->map = file_map(_metadata, &f[0], PROT_READ, MAP_SHARED);
	r->written = *r->map;
	pthread_barrier_init(&r->go, NULL, 2);
	ASSERT_EQ(0, pthread_create(&threads[0], NULL, remap_reader, r));
	ASSERT_EQ(0, pthread_create(&threads[1], NULL, remapper, r));
	for (unsigned long round = 0; round < rounds; round++) {
		unsigned long reads;

		memset(buf, r->written, PAGE);
		for (int i = 0; i < 2; i++) {
			ASSERT_EQ(PAGE, pwrite(f[i].fd, buf, PAGE, 0));
			ASSERT_EQ(0, fsync(f[i].fd));
			model_write(_metadata, &f[i], 0, buf, PAGE);
		}
		r->pause = true;
		while (!r->paused && !r->failure.seen)
			sched_yield();
		ASSERT_EQ(1, merge_pages(_metadata, &f[1], 0, &f[0], 0, 1));
		r->pause = false;
		reads = r->reads;
		while (r->reads < reads + 1000 && !r->failure.seen)
			sched_yield();
		r->gone = false;
		pthread_barrier_wait(&r->go);
		/* Earlier in one round, later in the other */
		for (unsigned long i = 0; i < round % 16 * 1000 && !r->gone; i++)
			atomic_thread_fence(memory_order_seq_cst);
		memset(buf, r->written + 1, PAGE);
		ASSERT_EQ(PAGE, pwrite(f[0].fd, buf, PAGE, 0));
		r->written++;
		model_write(_metadata, &f[0], 0, buf, PAGE);
		while (!r->gone)
			sched_yield();
		ASSERT_FALSE(r->failure.seen) {
			TH_LOG("round %lu: %s", round, r->failure.what);
		}
		check_file(&f[0]);
		check_file(&f[1]);
	}
	r->stop = true;
	pthread_barrier_wait(&r->go);
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	file_unmap(&f[0], r->map);
	file_close(&f[0]);
	file_close(&f[1]);
	free(buf);
	test_end(_metadata, dir);
	free(r);
}

/* ---- pages that are written one after the other ---- */

struct order {
	struct file files[2];
	atomic_bool stop;
	atomic_bool reads;
	struct failure failure;
	unsigned int between;	/* reads that saw one write of the two */
};

/* Page 1 is written before page 0, so it is never older. */
static void *order_reader(void *arg)
{
	struct order *o = arg;
	unsigned char buf[2 * PAGE];

	while (!o->stop) {
		if (pread(o->files[0].fd, buf, sizeof(buf), 0) != sizeof(buf) ||
		    (signed char)(buf[PAGE] - buf[0]) < 0) {
			snprintf(o->failure.what, sizeof(o->failure.what),
				 "page 1 is of write %u, page 0 of write %u",
				 buf[PAGE], buf[0]);
			o->failure.seen = true;
			break;
		}
		o->between += buf[0] != buf[PAGE];
		o->reads = true;
	}
	return NULL;
}

/*
 * read(2) copies pages in order.  Who sees a write to a page that is the file's
 * own must see what was written to a shared one behind it before that.
 */
TEST(order)
{
	unsigned long rounds = 20 * number_from_env("KSM_EXT_ROUNDS", ROUNDS);
	struct order *o = calloc(1, sizeof(*o));
	struct file *f = o->files;
	char dir[MAX_PATH];
	pthread_t thread;

	test_begin(_metadata, dir);
	for (int i = 0; i < 2; i++)
		file_create(_metadata, &f[i], dir, i ? "b" : "a", 2 * PAGE, 7);
	for (unsigned long round = 0; round < rounds; round++) {
		/* Page 0 of the other file differs, so it is never merged. */
		for (int i = 0; i < 2; i++) {
			memset(f[i].want, round, 2 * PAGE);
			f[i].want[PAGE - 1] = round + i;
			ASSERT_EQ(2 * PAGE, pwrite(f[i].fd, f[i].want, 2 * PAGE,
						   0));
			ASSERT_EQ(0, fsync(f[i].fd));
		}
		ASSERT_EQ(1, merge_pages(_metadata, &f[1], 1, &f[0], 1, 1));
		o->stop = false;
		o->reads = false;
		ASSERT_EQ(0, pthread_create(&thread, NULL, order_reader, o));
		while (!o->reads && !o->failure.seen)
			sched_yield();
		for (int page = 1; page >= 0; page--) {
			memset(f[0].want + page * PAGE, round + 1, PAGE);
			ASSERT_EQ(PAGE, pwrite(f[0].fd, f[0].want + page * PAGE,
					       PAGE, page * PAGE));
		}
		o->stop = true;
		pthread_join(thread, NULL);
		ASSERT_FALSE(o->failure.seen) {
			TH_LOG("round %lu: %s", round, o->failure.what);
		}
		check_file(&f[0]);
	}
	EXPECT_LT(0, o->between);
	file_close(&f[0]);
	file_close(&f[1]);
	test_end(_metadata, dir);
	free(o);
}

MANUAL_TEST_MAIN
