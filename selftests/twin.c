// SPDX-License-Identifier: GPL-2.0
/*
 * The twin fuzzer: files that start with equal contents are changed in every
 * way there is, in random order, while their pages are merged again and again.
 * What each must hold is known at any time (twin/engine.h), and is looked at in
 * every way there is (twin/ops.h).
 *
 *   sequence	One thread, and merging is one of the operations: a seed repeats
 *		a failure.  The shortest sequence that fails is looked for and
 *		printed.
 *   storm	Several threads, each with files of its own, while the policy
 *		"all" merges as fast as it can.
 *   pressure	A storm while memory is reclaimed, compacted and moved.
 *   faults	A sequence in which allocations and I/O fail on purpose.
 *   umount	A sequence whose files are left to umount.
 *
 * Operations come in episodes, each with a seed and files of its own.
 *   KSM_EXT_OPS	operations in total
 *   KSM_EXT_SEED	seed of the first episode; the others count up from it
 *   KSM_EXT_THREADS	threads of a storm
 *   KSM_EXT_TRACE	print each operation before it runs
 */
#include <inttypes.h>
#include <sys/mount.h>
#include <sys/random.h>

#include "twin/ops.h"
#include "all.skel.h"

#define EPISODE		1000
#define SEQUENCE_OPS	40000
#define STORM_OPS	20000
#define PRESSURE_OPS	10000
#define FAULT_OPS	20000
#define THREADS		3
#define MAX_THREADS	16

/* At least one of so many operations makes an alias of many pages. */
#define SEQUENCE_LARGE	100
#define STORM_LARGE	1000

/* Printed of a failed episode, up to the operation that found it */
#define LAST_OPS	12

/* ---- random operations ---- */

/* splitmix64 */
static unsigned int draw(uint64_t *state)
{
	uint64_t x = *state += 0x9e3779b97f4a7c15ULL;

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ x >> 27) * 0x94d049bb133111ebULL;
	return (x ^ x >> 31) >> 32;
}

/* Those that have one of the flags @but are left out. */
static unsigned int draw_code(uint64_t *state, unsigned int but)
{
	unsigned int sum = 0, code;

	for (code = 0; code < ARRAY_SIZE(ops); code++) {
		if (!(ops[code].flags & but))
			sum += ops[code].weight;
	}
	sum = draw(state) % sum;
	for (code = 0;; code++) {
		if (ops[code].flags & but)
			continue;
		if (sum < ops[code].weight)
			return code;
		sum -= ops[code].weight;
	}
}

static unsigned int draw_way(uint64_t *state, unsigned int code)
{
	unsigned int n = 0;

	while (n < MAX_WAYS && ops[code].ways[n])
		n++;
	return draw(state) % n;
}

/* Where a page begins, most of the time, or near it. */
static unsigned int draw_off(uint64_t *state)
{
	static const unsigned int in_page[] = { 1, 511, 512, 2048, 4095 };
	unsigned int off = draw(state) % (MAX_PAGES * 3 / 4) * PAGE;
	unsigned int x = draw(state);

	if (x % 2)
		return off;
	x = x / 2 % (ARRAY_SIZE(in_page) + 1);
	return off + (x ? in_page[x - 1] : draw(state) % PAGE);
}

static unsigned int draw_len(uint64_t *state)
{
	static const unsigned int often[] = {
		1, 512, 4095, 4096, 4096, 4096, 4096, 4097, 8192, 12288,
	};
	unsigned int x = draw(state) % (ARRAY_SIZE(often) + 2);

	if (x < ARRAY_SIZE(often))
		return often[x];
	return 1 + draw(state) % (x % 2 ? PAGE : 16 * PAGE);
}

/*
 * The ops of an episode depend on nothing but its seed, the mode, and whether
 * the thread has the pins, as the first has.
 */
static void draw_ops(const struct twin *t, uint64_t seed, struct op *op,
		     unsigned int nr)
{
	unsigned int but = (t->storm ? MERGES | ALONE : 0) |
			   (t->pins ? 0 : PINS);
	uint64_t state = seed;
	const struct op *end = op + nr;

	/* Neighbours must not draw the same numbers, one later. */
	state = (uint64_t)draw(&state) << 32;
	for (; op < end; op++) {
		unsigned int x = draw(&state);

		memset(op, 0, sizeof(*op));
		op->code = draw_code(&state, but);
		op->way = draw_way(&state, op->code);
		op->file = x % NFILES;
		op->other = (op->file + 1 + x / NFILES % (NFILES - 1)) % NFILES;
		op->pattern = draw(&state) % (NPATTERNS + 5);
		op->off = draw_off(&state);
		op->len = draw_len(&state);
		op->off2 = draw(&state) % 4 ? op->off : draw_off(&state);
		x = draw(&state);
		if (t->faults && ops[op->code].flags & (MAY_FAIL | MERGES) &&
		    x % 2)
			op->nth = 1 + x / 2 % (x % 8 ? 8 : 60);

		/* Most changes are looked at, in the file or in a twin. */
		x = draw(&state);
		if (!(ops[op->code].flags & CHANGES) || x % 4 == 0 ||
		    op + 1 == end)
			continue;
		op[1] = op[0];
		op++;
		op->code = CODE_CHECK;
		op->way = draw_way(&state, op->code);
		op->nth = 0;
		if (x % 4 == 1) {
			op->file = op->other;
			op->off = op->off2;
		}
	}
}

/* ---- an episode ---- */

static void print_op(const struct op *op, size_t nr)
{
	const struct operation *o = &ops[op->code];

	char data[16] = "as other", fault[16] = "";

	if (op->pattern < NPATTERNS)
		snprintf(data, sizeof(data), "pattern %u", op->pattern);
	if (op->nth)
		snprintf(fault, sizeof(fault), ", fault %u", op->nth);
	ksft_print_msg("%5zu: %-10s %-18s %c at 0x%05x len 0x%05x, other %c at 0x%05x, %s%s\n",
		       nr, o->name, o->ways[op->way], 'A' + op->file, op->off,
		       op->len, 'A' + op->other, op->off2, data, fault);
}

static void run_op(struct twin *t, const struct op *op)
{
	t->steps++;
	t->declines = NULL;
	t->injected = false;
	if (ops[op->code].flags & MAY_FAIL)
		faults_begin(t, op->nth, ops[op->code].flags & MAY_FAIL_IO);
	ops[op->code].run(t, op);
	faults_end(t);
	/* What is pinned may be no page of the file any more. */
	if ((ops[op->code].flags & REMOVES) &&
	    t->pinned == &t->files[op->file])
		t->pinned = NULL;
}

/* All bytes, in every way. */
static void check_end(struct twin *t)
{
	for (int way = CHECK_READ; way <= CHECK_DIRECT; way++) {
		t->steps++;
		check_files(t, way);
	}
}

/* Nothing shares a page any more when the files are gone. */
static void check_leak(struct twin *t)
{
	struct __test_metadata *_metadata = t->_metadata;

	for (int i = 0; counter(_metadata, "aliases"); i++) {
		if (i == MAX_TRIES)
			fail(t, "%ld aliases are left of files that are gone",
			     counter(_metadata, "aliases"));
		sync();
		usleep(20000);
	}
}

/*
 * Return: whether all was well.  If not, t->now is the operation that failed, or
 * @nr if it was the check at the end.
 */
static bool run_ops(struct twin *t, const struct op *op, size_t nr)
{
	bool ok = false;

	if (!sigsetjmp(t->escape, 1)) {
		t->now = 0;
		files_begin(t);
		for (size_t i = 0; i < nr; i++) {
			t->now = i;
			if (t->trace)
				print_op(&op[i], i);
			run_op(t, &op[i]);
		}
		t->now = nr;
		t->declines = NULL;
		check_end(t);
		files_end(t);
		if (!t->storm && !t->keep && !control)
			check_leak(t);
		ok = true;
	}
	if (!ok)
		files_end(t);
	return ok;
}

/* ---- what to say of a failure ---- */

static void print_ops(const struct op *op, size_t from, size_t to)
{
	for (size_t i = from; i < to; i++)
		print_op(&op[i], i);
}

static const char *mode_of(const struct twin *t)
{
	if (t->keep)
		return "umount";
	return t->faults ? "faults" : "sequence";
}

static void print_failure(const struct twin *t, const struct op *op, size_t nr,
			  uint64_t seed)
{
	size_t end = t->now < nr ? t->now + 1 : nr;

	ksft_print_msg("seed %" PRIu64 ", %s %zu: %s\n", seed,
		       t->now < nr ? "operation" : "check at the end, after",
		       t->now, t->failure);
	ksft_print_msg("the last operations:\n");
	print_ops(op, end > LAST_OPS ? end - LAST_OPS : 0, end);
}

static int nr_nodes(void)
{
	return access("/sys/devices/system/node/node1", F_OK) ? 1 : 2;
}

/* What "make fuzz" was told, it hands over. */
static void print_again(const char *mode, uint64_t seed, size_t nr)
{
	static const char *const settings[] = {
		"FS", "MKFS", "MOUNT", "DISK", "MEM", "CPUS", "NUMA", "CONFIG",
		"KSM_EXT_STRICT", "KSM_EXT_CONTROL", "KSM_EXT_THREADS",
	};
	char line[1024] = "";
	size_t len = 0;

	/* "make check" does not say so */
	if (nr_nodes() > 1)
		setenv("NUMA", "2", 0);
	for (size_t i = 0; i < ARRAY_SIZE(settings); i++) {
		const char *value = getenv(settings[i]);

		if (value && *value && len < sizeof(line))
			len += snprintf(line + len, sizeof(line) - len,
					strpbrk(value, " ;") ? " %s='%s'" :
							       " %s=%s",
					settings[i], value);
	}
	ksft_print_msg("again: make fuzz%s MODE=%s SEED=%" PRIu64 " OPS=%zu\n",
		       line, mode, seed, nr);
}

static bool hung(const struct twin *t)
{
	return !strncmp(t->failure, "hangs", strlen("hangs"));
}

/* Does it still fail?  One that is only slow must not pass for a wrong byte. */
static bool fails(struct twin *t, const struct op *op, size_t nr, bool hangs)
{
	return !run_ops(t, op, nr) && hung(t) == hangs;
}

/* Take out of a sequence that fails what it does not need for that. */
static size_t shrink(struct twin *t, struct op *op, size_t nr)
{
	struct op *less = calloc(nr, sizeof(*op));
	size_t chunk = (nr + 1) / 2;
	bool hangs = hung(t), shorter;

	do {
		shorter = false;
		for (size_t at = 0; at < nr;) {
			size_t n = chunk < nr - at ? chunk : nr - at;

			memcpy(less, op, at * sizeof(*op));
			memcpy(less + at, op + at + n,
			       (nr - at - n) * sizeof(*op));
			if (!fails(t, less, nr - n, hangs)) {
				at += n;
				continue;
			}
			nr -= n;
			if (t->now + 1 < nr)
				nr = t->now + 1;
			memcpy(op, less, nr * sizeof(*op));
			shorter = true;
		}
		if (chunk > 1)
			chunk /= 2;
	} while (shorter || chunk > 1);
	free(less);

	/* One page, the same in both files, is easier to think about. */
	for (size_t i = 0; i < nr; i++) {
		struct op was = op[i];

		op[i].off &= -PAGE;
		op[i].off2 = op[i].off;
		op[i].len = PAGE;
		if (!fails(t, op, nr, hangs))
			op[i] = was;
	}
	return nr;
}

/* Find out what a failure takes.  @op is spoiled. */
static void explain(struct twin *t, struct op *op, size_t nr)
{
	bool hangs = hung(t);

	watch(t, HANG_SECONDS_SHRINK);
	for (int i = 0; !fails(t, op, nr, hangs); i++) {
		if (i == 2) {
			ksft_print_msg("which did not fail again in 3 runs\n");
			return;
		}
	}
	if (t->now < nr)
		nr = t->now + 1;
	nr = shrink(t, op, nr);
	watch(t, HANG_SECONDS);
	if (run_ops(t, op, nr)) {
		ksft_print_msg("which does not fail each time\n");
		return;
	}
	ksft_print_msg("shortest sequence that fails, of %zu operations: %s\n",
		       nr, t->failure);
	print_ops(op, 0, nr);
}

/* ---- large folios ---- */

#define TRACING		"/sys/kernel/tracing/instances/twin/"
#define TRACE_BREAKS	TRACING "events/ksm_ext/ksm_ext_break/"

/* From here on, count aliases of many pages as they end. */
static void large_begin(struct __test_metadata *_metadata)
{
	if (control)
		return;
	/* an earlier test may have died */
	rmdir(TRACING);
	ASSERT_EQ(0, mkdir(TRACING, 0755)) TH_LOG("%s", strerror(errno));
	ASSERT_EQ(0, write_text(TRACE_BREAKS "filter", "nr > 1"));
	ASSERT_EQ(0, write_text(TRACE_BREAKS "enable", "1"));
}

static void large_end(struct __test_metadata *_metadata)
{
	if (control)
		return;
	EXPECT_EQ(0, write_text(TRACE_BREAKS "enable", "0"));
	EXPECT_EQ(0, rmdir(TRACING)) TH_LOG("%s", strerror(errno));
}

static unsigned long large_ended(struct __test_metadata *_metadata)
{
	FILE *trace = fopen(TRACING "trace", "r");
	unsigned long nr = 0;
	char line[512];
	bool found = false;

	ASSERT_NE(NULL, trace);
	while (!found && fgets(line, sizeof(line), trace))
		found = sscanf(line, "# entries-in-buffer/entries-written: %*u/%lu",
			       &nr) == 1;
	fclose(trace);
	ASSERT_TRUE(found);
	return nr;
}

/* ---- tests ---- */

FIXTURE(twin) {
	char dir[MAX_PATH];
	struct twin *t;
	unsigned int threads;
	unsigned long ops;
	uint64_t seed;
	long breaks;
};

FIXTURE_SETUP(twin)
{
	struct sigaction bus_error = {
		.sa_sigaction = on_bus_error,
		.sa_flags = SA_SIGINFO | SA_NODEFER,
	};
	struct sigaction tick = {
		.sa_handler = on_tick,
		.sa_flags = SA_RESTART,
	};
	unsigned int seed;

	ASSERT_EQ(sizeof(seed), getrandom(&seed, sizeof(seed), 0));
	self->seed = number_from_env("KSM_EXT_SEED", seed);
	self->ops = number_from_env("KSM_EXT_OPS", 0);
	self->threads = number_from_env("KSM_EXT_THREADS", THREADS);
	if (self->threads > MAX_THREADS)
		self->threads = MAX_THREADS;
	TH_LOG("seed %" PRIu64, self->seed);
	sigaction(SIGBUS, &bus_error, NULL);
	sigaction(SIGALRM, &tick, NULL);
	signal(SIGPIPE, SIG_IGN);
	self->t = calloc(MAX_THREADS, sizeof(*self->t));
	ASSERT_NE(NULL, self->t);
	test_begin(_metadata, self->dir);
	large_begin(_metadata);
	if (!control)
		self->breaks = all_breaks(_metadata);
}

FIXTURE_TEARDOWN(twin)
{
	large_end(_metadata);
	test_end(_metadata, self->dir);
	free(self->t);
}

/*
 * Had little been merged, little would be shown.  On xfs, which has large
 * folios, one operation of @large at least makes an alias of many pages.
 */
static void check_breaks(struct __test_metadata *_metadata,
			 const FIXTURE_DATA(twin) *self, unsigned long ops,
			 unsigned long large)
{
	unsigned long ended;
	long breaks;

	/* one that stopped early had no time */
	if (control || !__test_passed(_metadata))
		return;
	breaks = all_breaks(_metadata) - self->breaks;
	ended = large_ended(_metadata);
	TH_LOG("%lu operations, %ld breaks, %lu aliases of many pages", ops,
	       breaks, ended);
	EXPECT_LE(ops / 10, breaks);
	if (self->t->xfs && !strict) {
		EXPECT_LE(ops / large, ended);
	}
}

static void run_sequence(struct __test_metadata *_metadata, struct twin *t,
			 const char *dir, uint64_t seed, unsigned long nr_ops)
{
	struct op op[EPISODE];
	cpu_set_t cpus;
	bool ok = true;

	/* One processor: fewer orders in which things may happen */
	CPU_ZERO(&cpus);
	CPU_SET(sched_getcpu(), &cpus);
	sched_setaffinity(0, sizeof(cpus), &cpus);
	t->pins = true;
	twin_begin(_metadata, t, dir);
	ASSERT_TRUE(twin_enter(t));
	for (unsigned long left = nr_ops; left && ok; seed++) {
		size_t nr = left < EPISODE ? left : EPISODE;

		draw_ops(t, seed, op, nr);
		ok = run_ops(t, op, nr);
		if (!ok) {
			print_failure(t, op, nr, seed);
			print_again(mode_of(t), seed, nr);
			explain(t, op, nr);
		}
		left -= nr;
	}
	EXPECT_TRUE(ok);
	TH_LOG("%lu pages merged, %lu calls declined, %lu faults", t->merged,
	       t->declined, t->nr_injected);
	twin_leave(t);
	twin_end(t);
}

TEST_F_TIMEOUT(twin, sequence, INT_MAX)
{
	unsigned long nr = self->ops ?: SEQUENCE_OPS;

	manual_attach();
	run_sequence(_metadata, self->t, self->dir, self->seed, nr);
	check_breaks(_metadata, self, nr, SEQUENCE_LARGE);
}

/* Pages are still shared when the file system goes away. */
TEST_F_TIMEOUT(twin, umount, INT_MAX)
{
	struct file f, g;
	char mnt[MAX_PATH];

	manual_attach();
	mount_new(_metadata, self->dir, mnt, mkfs_like(self->dir), "");
	self->t->keep = true;
	run_sequence(_metadata, self->t, mnt, self->seed, EPISODE);
	/* The sequence may have ended with none. */
	file_create(_metadata, &f, mnt, "last", 16 * PAGE, 1);
	file_create(_metadata, &g, mnt, "last-twin", 16 * PAGE, 1);
	merge_all(&f, &g);
	EXPECT_SHARED(&f, 0, &g, 0);
	file_close(&f);
	file_close(&g);
	EXPECT_EQ(0, umount(mnt)) TH_LOG("umount: %s", strerror(errno));
	EXPECT_COUNTER("aliases", 0);
	EXPECT_COUNTER("pages_shared", 0);
	check_breaks(_metadata, self, EPISODE, SEQUENCE_LARGE);
}

/* ---- storms ---- */

struct worker {
	struct twin *t;
	pthread_t thread;
	uint64_t seed;
	unsigned long ops;
	atomic_bool *stop;	/* of the storm: somebody failed */
	bool ok;
};

static void *work(void *arg)
{
	struct worker *w = arg;
	struct op *op = calloc(EPISODE, sizeof(*op));
	unsigned long left = w->ops;

	w->ok = twin_enter(w->t);
	for (; left && w->ok && !*w->stop; w->seed++) {
		size_t nr = left < EPISODE ? left : EPISODE;

		draw_ops(w->t, w->seed, op, nr);
		w->ok = run_ops(w->t, op, nr);
		/* the first that fails tells */
		if (!w->ok && !atomic_exchange(w->stop, true))
			print_failure(w->t, op, nr, w->seed);
		left -= nr;
	}
	twin_leave(w->t);
	free(op);
	return NULL;
}

/* Episodes of other threads have other seeds. */
#define SEEDS_APART	1000000

static void run_storm(struct __test_metadata *_metadata,
		      FIXTURE_DATA(twin) *self, const char *mode,
		      unsigned long nr_ops, atomic_bool *stop)
{
	struct worker workers[MAX_THREADS];
	unsigned long declined = 0;
	unsigned int i;

	for (i = 0; i < self->threads; i++) {
		struct worker *w = &workers[i];
		char dir[MAX_PATH + 16];

		w->t = &self->t[i];
		w->t->storm = true;
		w->t->pins = !i;
		w->seed = self->seed + i * SEEDS_APART;
		w->ops = nr_ops / self->threads;
		w->stop = stop;
		snprintf(dir, sizeof(dir), "%s/%u", self->dir, i);
		ASSERT_EQ(0, mkdir(dir, 0755));
		twin_begin(_metadata, w->t, dir);
	}
	for (i = 0; i < self->threads; i++) {
		ASSERT_EQ(0, pthread_create(&workers[i].thread, NULL, work,
					    &workers[i]));
	}
	for (i = 0; i < self->threads; i++) {
		struct worker *w = &workers[i];

		pthread_join(w->thread, NULL);
		declined += w->t->declined;
		twin_end(w->t);
		EXPECT_TRUE(w->ok);
	}
	if (*stop)
		print_again(mode, self->seed, nr_ops);
	*stop = true;
	TH_LOG("%u threads, %lu calls declined", self->threads, declined);
}

/* The policy "all", without rest. */
static struct bpf_link *attach_all(struct __test_metadata *_metadata)
{
	struct bpf_link *link;
	struct all *all;

	if (control)
		return NULL;
	all = all__open();
	ASSERT_NE(NULL, all);
	all->rodata->idle_ms = 0;
	all->rodata->slice_pages = 512;
	bpf_map__set_max_entries(all->maps.candidates, 16384);
	ASSERT_EQ(0, all__load(all));
	link = bpf_map__attach_struct_ops(all->maps.all_ops);
	ASSERT_NE(NULL, link) TH_LOG("policy all: %s", strerror(errno));
	return link;
}

/* It has to be in charge yet: one that was ejected merges nothing. */
static void detach_all(struct __test_metadata *_metadata, struct bpf_link *link)
{
	char state[MAX_PATH], why[MAX_PATH];

	if (control)
		return;
	ASSERT_EQ(0, read_text(KSM_EXT_SYSFS "state", state, sizeof(state)));
	ASSERT_EQ(0, read_text(KSM_EXT_SYSFS "exit", why, sizeof(why)));
	EXPECT_STREQ("active", state) TH_LOG("policy all: %s", why);
	bpf_link__destroy(link);
}

TEST_F_TIMEOUT(twin, storm, INT_MAX)
{
	struct bpf_link *link = attach_all(_metadata);
	unsigned long nr = self->ops ?: STORM_OPS;
	atomic_bool stop = false;

	run_storm(_metadata, self, "storm", nr, &stop);
	detach_all(_metadata, link);
	check_breaks(_metadata, self, nr, STORM_LARGE);
}

/* ---- pressure ---- */

#define CGROUPS "/sys/fs/cgroup/"
#define MPOL_MF_MOVE_ALL 4

struct pressure {
	const struct twin *t;
	unsigned int threads;
	int nodes;
	char reclaim[MAX_PATH];
	atomic_bool *stop;
	unsigned long moved;	/* pages, to another node */
};

/*
 * Pages of the kept mappings, wherever they are by now.
 * Return: how many were on another node before.
 */
static unsigned long move_all(const struct twin *t, int node)
{
	int was[2 * MAX_PAGES], is[2 * MAX_PAGES], nodes[2 * MAX_PAGES];
	void *addr[2 * MAX_PAGES];
	const size_t nr = ARRAY_SIZE(addr);
	unsigned long moved = 0;

	for (int i = 0; i < NFILES; i++) {
		for (size_t j = 0; j < nr; j++) {
			addr[j] = t->files[i].slot[0] + j * PAGE;
			nodes[j] = node;
		}
		if (syscall(SYS_move_pages, 0, nr, addr, NULL, was, 0) ||
		    syscall(SYS_move_pages, 0, nr, addr, nodes, is,
			    MPOL_MF_MOVE_ALL) < 0)
			continue;
		for (size_t j = 0; j < nr; j++)
			moved += was[j] >= 0 && was[j] != node && is[j] == node;
	}
	return moved;
}

static void *press(void *arg)
{
	struct pressure *p = arg;

	for (unsigned int i = 0; !*p->stop; i++) {
		write_text(p->reclaim, "256K");
		p->moved += move_all(&p->t[i % p->threads],
				     i / p->threads % p->nodes);
		if (i % 16 == 0)
			write_text("/proc/sys/vm/compact_memory", "1");
		sched_yield();
	}
	return NULL;
}

static long vmstat(struct __test_metadata *_metadata, const char *name)
{
	FILE *in = fopen("/proc/vmstat", "r");
	bool found = false;
	char line[128];
	long nr = 0;

	ASSERT_NE(NULL, in);
	while (!found && fscanf(in, "%127s %ld", line, &nr) == 2)
		found = !strcmp(line, name);
	fclose(in);
	ASSERT_TRUE(found) TH_LOG("%s", name);
	return nr;
}

static void check_effect(struct __test_metadata *_metadata, const char *what,
			 long n, unsigned long ops)
{
	TH_LOG("%ld pages %s", n, what);
	/* one that stopped early had no time */
	if (__test_passed(_metadata)) {
		EXPECT_LE(ops / 100, n);
	}
}

TEST_F_TIMEOUT(twin, pressure, INT_MAX)
{
	struct pressure p = { .t = self->t, .threads = self->threads };
	struct bpf_link *link = attach_all(_metadata);
	unsigned long nr = self->ops ?: PRESSURE_OPS;
	char group[MAX_PATH - 32], procs[MAX_PATH];
	long scanned = vmstat(_metadata, "compact_migrate_scanned");
	long migrated = vmstat(_metadata, "pgmigrate_success");
	long reclaimed = control ? 0 : counter(_metadata, "break/reclaim");
	atomic_bool stop = false;
	pthread_t thread;

	/* What this process brings into memory counts for a group of its own. */
	ASSERT_EQ(0, write_text(CGROUPS "cgroup.subtree_control", "+memory"));
	snprintf(group, sizeof(group), CGROUPS "twin.%d", getpid());
	ASSERT_EQ(0, mkdir(group, 0755));
	snprintf(procs, sizeof(procs), "%s/cgroup.procs", group);
	ASSERT_EQ(0, write_text(procs, "0"));
	snprintf(p.reclaim, sizeof(p.reclaim), "%s/memory.reclaim", group);
	p.nodes = nr_nodes();
	p.stop = &stop;
	ASSERT_EQ(0, pthread_create(&thread, NULL, press, &p));

	run_storm(_metadata, self, "pressure", nr, &stop);
	pthread_join(thread, NULL);
	detach_all(_metadata, link);
	check_breaks(_metadata, self, nr, STORM_LARGE);
	check_effect(_metadata, "were looked at by compaction",
		     vmstat(_metadata, "compact_migrate_scanned") - scanned, nr);
	check_effect(_metadata, "migrated",
		     vmstat(_metadata, "pgmigrate_success") - migrated, nr);
	if (p.nodes > 1)
		check_effect(_metadata, "moved to another node", p.moved, nr);
	if (!control)
		check_effect(_metadata, "were reclaimed that were shared",
			     counter(_metadata, "break/reclaim") - reclaimed,
			     nr);
	ASSERT_EQ(0, write_text(CGROUPS "cgroup.procs", "0"));
	EXPECT_EQ(0, rmdir(group));
}

/* ---- faults ---- */

#define DEBUGFS "/sys/kernel/debug/"

/* The block device that @dir is on. */
static void disk_of(struct __test_metadata *_metadata, const char *dir,
		    struct stat *st)
{
	char cmd[MAX_PATH + 32], disk[MAX_PATH] = "";
	FILE *in;

	snprintf(cmd, sizeof(cmd), "findmnt -no SOURCE -T %s", dir);
	in = popen(cmd, "r");
	ASSERT_NE(NULL, in);
	fgets(disk, sizeof(disk), in);
	pclose(in);
	disk[strcspn(disk, "\n")] = 0;
	ASSERT_EQ(0, stat(disk, st)) TH_LOG("disk of %s: %s", dir, disk);
}

/* Nothing fails by chance: only what fail-nth asks for. */
static void faults_setup(struct __test_metadata *_metadata, struct twin *t,
			 const char *dir)
{
	static const char *const settings[][2] = {
		{ DEBUGFS "failslab/ignore-gfp-wait", "N" },
		{ DEBUGFS "failslab/verbose", "0" },
		{ DEBUGFS "fail_page_alloc/ignore-gfp-wait", "N" },
		{ DEBUGFS "fail_page_alloc/ignore-gfp-highmem", "N" },
		{ DEBUGFS "fail_page_alloc/min-order", "0" },
		{ DEBUGFS "fail_page_alloc/verbose", "0" },
		{ DEBUGFS "fail_make_request/verbose", "0" },
	};
	char path[MAX_PATH];
	struct stat st;

	for (size_t i = 0; i < ARRAY_SIZE(settings); i++) {
		ASSERT_EQ(0, write_text(settings[i][0], settings[i][1])) {
			TH_LOG("%s", settings[i][0]);
		}
	}
	disk_of(_metadata, dir, &st);
	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/make-it-fail",
		 major(st.st_rdev), minor(st.st_rdev));
	t->fail_io = open(path, O_WRONLY);
	ASSERT_LE(0, t->fail_io) TH_LOG("%s: %s", path, strerror(errno));
	t->faults = true;
}

TEST_F_TIMEOUT(twin, faults, INT_MAX)
{
	unsigned long nr = self->ops ?: FAULT_OPS;

	if (access("/proc/thread-self/fail-nth", W_OK))
		SKIP(return, "nothing can fail on purpose: see CONFIG=debug");
	manual_attach();
	faults_setup(_metadata, self->t, self->dir);
	/*
	 * ext4 may lose count of preallocated blocks now.  It says so, goes on
	 * with what the bitmap says, and does the same where nothing is merged:
	 * with KSM_EXT_CONTROL=1.
	 */
	ASSERT_EQ(0, write_text("/dev/kmsg", "twin: allocations fail from here"));
	run_sequence(_metadata, self->t, self->dir, self->seed, nr);
	EXPECT_EQ(0, write_text("/dev/kmsg", "twin: allocations fail no more"));
	EXPECT_LE(nr / 50, self->t->nr_injected);
	check_breaks(_metadata, self, nr, SEQUENCE_LARGE);
}

int main(int argc, char **argv)
{
	manual_load();
	return test_harness_run(argc, argv);
}
