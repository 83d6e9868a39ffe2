// SPDX-License-Identifier: GPL-2.0
/*
 * What one operation costs on an ordinary page of a file, and on a merged one.
 *
 * With KSM_EXT_CONTROL=1 no policy is ever loaded, and only ordinary pages are
 * measured: this works on a kernel without ksm_ext, too.
 */
#include <math.h>
#include <sys/random.h>

#include "bench.h"

#define NPAGES	256
#define SIZE	(NPAGES * PAGE)
#define ROUNDS	15
#define AROUND	16	/* pages that one read fault maps, by default */
#define BULK	32	/* pages of a large read */

#define FAULT_AROUND "/sys/kernel/debug/fault_around_bytes"

/* What an operation works on; and what is done to it before each round. */
struct work {
	struct file *f;
	char *map;
	char buf[BULK * PAGE];
};

struct op {
	const char *name;
	void (*run)(struct work *work, size_t page);
	size_t step;		/* run it on every step-th page; 0: on all */
	enum {
		FILE_ONLY,
		MAPPED,		/* mapped anew, no page table entry yet */
		TOUCHED,	/* and page table entries to read */
	} map;
	size_t fault_around;	/* pages; 0: the default */
	const char *breaks;	/* each run breaks an alias: the counter */
};

static void op_nothing(struct work *work, size_t page)
{
}

static void op_pread(struct work *work, size_t page)
{
	if (pread(work->f->fd, work->buf, PAGE, page * PAGE) != PAGE)
		abort();
}

static void op_pread_bulk(struct work *work, size_t page)
{
	if (pread(work->f->fd, work->buf, BULK * PAGE, page * PAGE) !=
	    BULK * PAGE)
		abort();
}

static void op_read(struct work *work, size_t page)
{
	*(volatile char *)work->buf = work->map[page * PAGE];
}

/* What is written is what was there: files stay equal. */
static void op_store(struct work *work, size_t page)
{
	*(volatile char *)(work->map + page * PAGE) =
		work->f->want[page * PAGE];
}

static void op_pwrite_byte(struct work *work, size_t page)
{
	if (pwrite(work->f->fd, work->f->want + page * PAGE, 1,
		   page * PAGE) != 1)
		abort();
}

static void op_pwrite(struct work *work, size_t page)
{
	if (pwrite(work->f->fd, work->f->want + page * PAGE, PAGE,
		   page * PAGE) != PAGE)
		abort();
}

static const struct op ops[] = {
	{ .name = "pread_4k", .run = op_pread },
	{ .name = "pread_128k", .run = op_pread_bulk, .step = BULK },
	{
		.name = "read_fault",
		.run = op_read,
		.map = MAPPED,
		.fault_around = 1,
	}, {
		.name = "read_fault_around",
		.run = op_read,
		.map = MAPPED,
		.step = AROUND,
	}, {
		.name = "store_absent",
		.run = op_store,
		.map = MAPPED,
		.breaks = "write_fault",
	}, {
		.name = "store_readonly",
		.run = op_store,
		.map = TOUCHED,
		.breaks = "write_fault",
	},
	{ .name = "pwrite_byte", .run = op_pwrite_byte, .breaks = "write" },
	{ .name = "pwrite_4k", .run = op_pwrite, .breaks = "write" },
};

#define NR_OPS (sizeof(ops) / sizeof(ops[0]))

FIXTURE(cost) {
	char dir[MAX_PATH];
	struct file plain, a, b;	/* a and b are twins */
};

FIXTURE_SETUP(cost)
{
	test_begin(_metadata, self->dir);
	file_create(_metadata, &self->plain, self->dir, "plain", SIZE, 1);
	file_create(_metadata, &self->a, self->dir, "a", SIZE, 2);
	file_create(_metadata, &self->b, self->dir, "b", SIZE, 2);
}

FIXTURE_TEARDOWN(cost)
{
	file_close(&self->plain);
	file_close(&self->a);
	file_close(&self->b);
	test_end(_metadata, self->dir);
}

/* Costs of an operation: of each run, and the means of the rounds. */
struct cost {
	int rounds, runs;
	double mean[ROUNDS], each[ROUNDS * NPAGES];
};

static void run_all(const struct op *op, struct work *work, size_t pages,
		    struct cost *cost)
{
	size_t step = op->step ?: 1;
	uint64_t begin = now(), last = begin, next;

	for (size_t page = 0; page < pages; page += step) {
		op->run(work, page);
		next = now();
		cost->each[cost->runs++] = next - last;
		last = next;
	}
	cost->mean[cost->rounds++] = (double)(last - begin) / (pages / step);
}

/* One more round, on pages that were all touched a moment ago. */
static void measure(struct __test_metadata *_metadata, const struct op *op,
		    struct file *f, size_t pages, bool merged,
		    struct cost *cost)
{
	struct work work = { .f = f };
	char name[64], around[16];
	long before = 0;

	read_to_cache(_metadata, f);
	snprintf(around, sizeof(around), "%zu",
		 (op->fault_around ?: AROUND) * PAGE);
	ASSERT_EQ(0, write_text(FAULT_AROUND, around));
	if (op->map != FILE_ONLY)
		work.map = file_map(_metadata, f, PROT_READ | PROT_WRITE,
				    MAP_SHARED);
	if (op->map == TOUCHED)
		touch(work.map, pages * PAGE);
	snprintf(name, sizeof(name), "break/%s", op->breaks ?: "");
	if (op->breaks && merged)
		before = counter(_metadata, name);

	run_all(op, &work, pages, cost);

	if (op->breaks && merged) {
		ASSERT_EQ(pages, counter(_metadata, name) - before) {
			TH_LOG("%s: wanted breaks, and seen", op->name);
		}
	}
	if (work.map)
		file_unmap(f, work.map);
}

/* What the loop and the clock cost is not what the operation costs. */
static struct cost nothing;

static void tell_cost(const char *name, const char *kind, struct cost *cost)
{
	char key[64];

	snprintf(key, sizeof(key), "%s.%s", name, kind);
	result(key, of_many(cost->mean, cost->rounds) -
		    of_many(nothing.mean, nothing.rounds));
	snprintf(key, sizeof(key), "%s.%s_each", name, kind);
	result(key, of_many(cost->each, cost->runs) -
		    of_many(nothing.each, nothing.runs));
}

static void measure_nothing(struct __test_metadata *_metadata,
			    FIXTURE_DATA(cost) *self)
{
	const struct op op = { .run = op_nothing };

	for (int round = 0; round < ROUNDS; round++)
		measure(_metadata, &op, &self->plain, NPAGES, false, &nothing);
}

TEST_F_TIMEOUT(cost, operations, 600)
{
	static struct cost plain[NR_OPS], merged[NR_OPS];

	measure_nothing(_metadata, self);
	for (int round = 0; round < ROUNDS; round++) {
		for (size_t i = 0; i < NR_OPS; i++) {
			read_anew(_metadata, &self->plain);
			measure(_metadata, &ops[i], &self->plain, NPAGES,
				false, &plain[i]);
			if (control)
				continue;
			read_anew(_metadata, &self->a);
			read_anew(_metadata, &self->b);
			merge_all(&self->a, &self->b);
			measure(_metadata, &ops[i], &self->b, NPAGES, true,
				&merged[i]);
		}
	}
	for (size_t i = 0; i < NR_OPS; i++) {
		tell_cost(ops[i].name, "plain", &plain[i]);
		if (!control)
			tell_cost(ops[i].name, "merged", &merged[i]);
	}
}

/* The last place that shares a page takes it, instead of copying it. */
TEST_F_TIMEOUT(cost, last_alias, 600)
{
	const struct op op = {
		.name = "last_alias",
		.run = op_store,
		.map = MAPPED,
		.breaks = "write_fault",
	};
	static struct cost first, last;

	if (control)
		return;
	measure_nothing(_metadata, self);
	for (int round = 0; round < ROUNDS; round++) {
		read_anew(_metadata, &self->a);
		read_anew(_metadata, &self->b);
		merge_all(&self->a, &self->b);
		measure(_metadata, &op, &self->b, NPAGES, true, &first);
		measure(_metadata, &op, &self->a, NPAGES, true, &last);
	}
	tell_cost(op.name, "merged", &last);
}

/* How many others share the page must not matter. */
TEST_F_TIMEOUT(cost, aliases_per_root, 600)
{
	static const size_t counts[] = { 2, 16, 256 };
	const struct op op = {
		.name = "aliases_per_root",
		.run = op_store,
		.map = MAPPED,
		.breaks = "write_fault",
	};
	static struct cost cost[3];
	const size_t nr = 64;	/* roots */
	struct file crowd;
	size_t made = 1;
	char key[64];

	if (control)
		return;
	measure_nothing(_metadata, self);
	file_create(_metadata, &crowd, self->dir, "crowd", nr * PAGE, 2);
	for (size_t i = 1; i < 255; i++) {
		ASSERT_EQ(nr * PAGE, pwrite(crowd.fd, crowd.want, nr * PAGE,
					    i * nr * PAGE));
	}
	ASSERT_EQ(0, fsync(crowd.fd));

	for (int i = 0; i < 3; i++) {
		for (; made < counts[i] - 1; made++) {
			ASSERT_EQ(nr, merge_pages(_metadata, &crowd, 0, &crowd,
						  made * nr, nr));
		}
		for (int round = 0; round < ROUNDS; round++) {
			read_anew(_metadata, &self->b);
			ASSERT_EQ(nr, merge_pages(_metadata, &crowd, 0,
						  &self->b, 0, nr));
			check_totals(nr * counts[i]);
			measure(_metadata, &op, &self->b, nr, true, &cost[i]);
		}
		snprintf(key, sizeof(key), "aliases_%zu", counts[i]);
		tell_cost(key, "merged", &cost[i]);
	}
	file_close(&crowd);
}

/* ---- what a writer can tell ---- */

#define GUESSES		128	/* pages */
#define GUESS_ROUNDS	30
#define SAMPLES		(GUESS_ROUNDS * GUESSES)

/* What is done about equal pages, and whether there are some. */
static const struct guess_mode {
	const char *name;
	bool look, strict, equal;
} guess_modes[] = {
	/* Two where nothing can be told: is it so that nobody does? */
	{ "off", .equal = true },
	{ "unequal", .look = true, .strict = true },
	{ "default", .look = true, .equal = true },
	{ "strict", .look = true, .strict = true, .equal = true },
};

#define NR_MODES ARRAY_SIZE(guess_modes)

struct samples {
	int nr;
	double cost[SAMPLES];
};

/* How many of every second one, from @first on, cost more than @limit */
static double share_above(const struct samples *samples, int first,
			  double limit)
{
	int above = 0, nr = 0;

	for (int i = first; i < samples->nr; i += 2, nr++)
		above += samples->cost[i] > limit;
	return (double)above / nr;
}

/*
 * Who knows nothing but what a write cost: how often does he tell right from
 * wrong?  He has half of the samples to find the best limit, and is judged by
 * the others.
 */
static double share_told(const struct samples *right,
			 const struct samples *wrong)
{
	double best = 0, limit = 0, share;

	for (int i = 0; i < right->nr + wrong->nr; i += 2) {
		double l = i < right->nr ? right->cost[i] :
			   wrong->cost[(i - right->nr) & ~1];

		share = share_above(right, 0, l) - share_above(wrong, 0, l);
		if (share * share > best * best) {
			best = share;
			limit = l;
		}
	}
	share = share_above(right, 1, limit) - share_above(wrong, 1, limit);
	return 0.5 + (best < 0 ? -share : share) / 2;
}

/*
 * How far that is off 0.5 by chance, in 95 of 100 cases, at most: that of two
 * shares of half of SAMPLES / 2 tosses of a coin each.
 */
static double share_by_chance(void)
{
	return 1.96 * sqrt(2 * 0.25 / (SAMPLES / 4)) / 2;
}

/*
 * Which guesses are right is drawn for each round.  If it were the same ones, a
 * cost that depends on the place in the file would look like a leak.  All pages
 * are written, so that their past is the same, too.
 */
static void draw_guesses(struct __test_metadata *_metadata,
			 const struct guess_mode *mode, struct file *guess,
			 const struct file *f, const unsigned char *wrong,
			 bool *right)
{
	unsigned char drawn[GUESSES];

	ASSERT_EQ(GUESSES, getrandom(drawn, GUESSES, 0));
	for (size_t page = 0; page < GUESSES; page++) {
		const unsigned char *bytes;

		right[page] = drawn[page] & 1;
		bytes = right[page] && mode->equal ? f->want : wrong;
		bytes += page * PAGE;
		ASSERT_EQ(PAGE, pwrite(guess->fd, bytes, PAGE, page * PAGE));
		model_write(_metadata, guess, page * PAGE, bytes, PAGE);
	}
	ASSERT_EQ(0, fsync(guess->fd));
}

/* All pages get a hash, and those of equal index are compared, and merged. */
static void look_for_twins(struct __test_metadata *_metadata,
			   const struct guess_mode *mode, const struct file *f,
			   const struct file *guess, const bool *right)
{
	struct manual_args args = { .nr = GUESSES };

	args.dst = file_id(_metadata, guess);
	ASSERT_EQ(GUESSES, manual_call(manual->progs.manual_hash, &args));
	args.src = args.dst;
	args.dst = file_id(_metadata, f);
	ASSERT_EQ(GUESSES, manual_call(manual->progs.manual_hash, &args));
	args.nr = 1;
	for (size_t page = 0; page < GUESSES; page++) {
		args.dst_index = page;
		args.src_index = page;
		ASSERT_EQ(right[page] && mode->equal ? 1 : -EILSEQ,
			  manual_call(manual->progs.manual_merge, &args));
	}
}

/* One round of first writes, to pages that were looked at if they ever are */
static void guess_round(struct __test_metadata *_metadata, const struct op *op,
			struct file *guess, const bool *right,
			struct samples samples[2])
{
	struct work work = { .f = guess };
	uint64_t begin;

	if (op->map != FILE_ONLY)
		work.map = file_map(_metadata, guess, PROT_READ | PROT_WRITE,
				    MAP_SHARED);
	if (op->map == TOUCHED)
		touch(work.map, GUESSES * PAGE);
	for (size_t page = 0; page < GUESSES; page++) {
		struct samples *s = &samples[right[page]];

		begin = now();
		op->run(&work, page);
		s->cost[s->nr++] = now() - begin;
	}
	if (work.map)
		file_unmap(guess, work.map);
}

/* Return: how often right and wrong were told from each other */
static double tell_guesses(const char *name, struct samples samples[2])
{
	double told = share_told(&samples[1], &samples[0]);	/* not sorted yet */
	char key[128];

	snprintf(key, sizeof(key), "%s.right", name);
	result(key, of_many(samples[1].cost, samples[1].nr));
	snprintf(key, sizeof(key), "%s.wrong", name);
	result(key, of_many(samples[0].cost, samples[0].nr));
	snprintf(key, sizeof(key), "%s.told", name);
	result(key, told);
	return told;
}

/*
 * Does a write tell whether the page was that of another file?  With
 * BENCH_TOLD=1 it has to in default mode, and may not elsewhere.  That is for
 * instructions: four standard deviations are as good as never by chance.
 */
TEST_F_TIMEOUT(cost, guesses, 900)
{
	static struct samples samples[NR_MODES][NR_OPS][2];
	unsigned char *wrong;
	bool right[GUESSES];
	bool check = number_from_env("BENCH_TOLD", 0);
	double chance = share_by_chance(), told;
	struct file guess;
	char name[64];

	if (control)
		return;
	file_create(_metadata, &guess, self->dir, "guess", GUESSES * PAGE, 3);
	wrong = malloc(guess.size);
	ASSERT_NE(NULL, wrong);
	memcpy(wrong, guess.want, guess.size);
	for (size_t m = 0; m < NR_MODES; m++) {
		const struct guess_mode *mode = &guess_modes[m];

		set_strict(_metadata, mode->strict);
		for (size_t i = 0; i < GUESS_ROUNDS * NR_OPS; i++) {
			size_t op = i % NR_OPS;

			if (!ops[op].breaks)
				continue;
			draw_guesses(_metadata, mode, &guess, &self->a, wrong,
				     right);
			read_anew(_metadata, &self->a);
			read_anew(_metadata, &guess);
			if (mode->look)
				look_for_twins(_metadata, mode, &self->a,
					       &guess, right);
			guess_round(_metadata, &ops[op], &guess, right,
				    samples[m][op]);
		}
		for (size_t op = 0; op < NR_OPS; op++) {
			if (!ops[op].breaks)
				continue;
			snprintf(name, sizeof(name), "guess.%s.%s", mode->name,
				 ops[op].name);
			told = tell_guesses(name, samples[m][op]);
			if (!check)
				continue;
			if (mode->look && mode->equal && !mode->strict) {
				EXPECT_TRUE(told > 0.9)
					TH_LOG("%s: %.2f", name, told);
			} else {
				EXPECT_TRUE(told < 0.5 + 2 * chance)
					TH_LOG("%s: %.2f", name, told);
			}
		}
	}
	result("guess.chance", chance);
	set_strict(_metadata, strict);
	free(wrong);
	file_close(&guess);
}

/* The same in anonymous memory: KSM's break, and an ordinary first store. */
TEST_F_TIMEOUT(cost, ksm, 600)
{
	const struct op op = { .run = op_store };
	struct work work = { .f = &self->a };
	static struct cost plain, merged;

	if (control)
		return;
	measure_nothing(_metadata, self);
	for (int round = 0; round < ROUNDS; round++) {
		char *fresh = mmap(NULL, SIZE, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		char *a = ksm_map(_metadata, self->a.want, SIZE);
		char *b = ksm_map(_metadata, self->a.want, SIZE);

		ASSERT_NE(MAP_FAILED, fresh);
		work.map = fresh;
		run_all(&op, &work, NPAGES, &plain);

		ksm_merge(_metadata, NPAGES);
		ksm_set(_metadata, "run", "0");
		ASSERT_EQ(pfn_of(a), pfn_of(b));
		touch(b, SIZE);
		work.map = b;
		run_all(&op, &work, NPAGES, &merged);
		ASSERT_NE(pfn_of(a), pfn_of(b));
		munmap(fresh, SIZE);
		munmap(a, SIZE);
		munmap(b, SIZE);
		ksm_set(_metadata, "run", "2");
	}
	tell_cost("anon_store", "plain", &plain);
	tell_cost("anon_store", "merged", &merged);
}

MANUAL_TEST_MAIN
