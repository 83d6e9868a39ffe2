// SPDX-License-Identifier: GPL-2.0
/*
 * What one operation costs on an ordinary page of a file, and on a merged one.
 *
 * With KSM_EXT_CONTROL=1 no policy is ever loaded, and only ordinary pages are
 * measured: this works on a kernel without ksm_ext, too.
 */
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
