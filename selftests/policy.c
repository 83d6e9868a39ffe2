// SPDX-License-Identifier: GPL-2.0
/*
 * Policies: how they come, take each other's place, fail and go, and that
 * nothing of this touches what is merged or what files hold.
 */
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <linux/capability.h>

#include "ksm_ext_test.h"
#include "bpf/policies.h"
#include "bpf/trace.h"
#include "policies.skel.h"
#include "refused.skel.h"
#include "trace.skel.h"

#define NPAGES	8
#define SIZE	((NPAGES - 1) * PAGE + 1000)
#define HIT	2

/* Room for what a policy prints when it ends */
#define DUMP_LEN	4096

/* enum ksm_ext_exit_kind of the kernel */
enum {
	EXIT_NONE, EXIT_UNREG, EXIT_UPDATE, EXIT_ERROR, EXIT_STALL, EXIT_SELF,
	EXIT_SYSRQ,
};

/* Where the policy quitter quits */
enum { QUIT_IN_SCAN = 1, QUIT_IN_DOMAIN, QUIT_IN_MERGED, QUIT_IN_BROKEN };

FIXTURE(policy) {
	char dir[MAX_PATH];
	struct file a, b;	/* twins */
	struct policies *skel;
	struct bpf_link *link;
};

static void put_domain(struct __test_metadata *_metadata,
		       struct bpf_map *domains, const struct file *f,
		       __u64 domain)
{
	struct stat st;
	__u64 ino;

	ASSERT_EQ(0, fstat(f->fd, &st));
	ino = st.st_ino;
	ASSERT_EQ(0, bpf_map__update_elem(domains, &ino, sizeof(ino), &domain,
					  sizeof(domain), BPF_ANY));
}

static void add_domain(struct __test_metadata *_metadata,
		       struct policies *skel, const struct file *f,
		       __u64 domain)
{
	put_domain(_metadata, skel->maps.domains, f, domain);
}

FIXTURE_SETUP(policy)
{
	if (control)
		SKIP(return, "control run: no policies");
	test_begin(_metadata, self->dir);
	file_create(_metadata, &self->a, self->dir, "a", SIZE, 1);
	file_create(_metadata, &self->b, self->dir, "b", SIZE, 1);
	self->skel = policies__open_and_load();
	ASSERT_NE(NULL, self->skel) TH_LOG("%s", strerror(errno));
	add_domain(_metadata, self->skel, &self->a, 1);
	add_domain(_metadata, self->skel, &self->b, 1);
}

FIXTURE_TEARDOWN(policy)
{
	bpf_link__destroy(self->link);
	policies__destroy(self->skel);
	EXPECT_EQ(0, write_text(KSM_EXT_SYSFS "run", "1"));
	EXPECT_EQ(0, write_text(KSM_EXT_SYSFS "thrash_pages", "1024"));
	file_close(&self->a);
	file_close(&self->b);
	test_end(_metadata, self->dir);
}

static void __expect_text(struct __test_metadata *_metadata, const char *name,
			  const char *want, int line)
{
	char path[MAX_PATH], text[256] = "";

	snprintf(path, MAX_PATH, KSM_EXT_SYSFS "%s", name);
	EXPECT_EQ(0, read_text(path, text, sizeof(text)));
	EXPECT_EQ(0, strncmp(text, want, *want ? strlen(want) : 1)) {
		TH_LOG("line %d: %s is \"%s\", not \"%s\"", line, name, text,
		       want);
	}
}

/* The file holds a line that begins with this, or an empty line. */
#define expect_text(name, want) \
	__expect_text(_metadata, name, want, __LINE__)

/* Wait for the state to become this, woken by each change of it. */
static void wait_for_state(struct __test_metadata *_metadata, const char *want)
{
	struct pollfd pfd = { .events = POLLPRI };
	char text[64];
	ssize_t n;

	pfd.fd = open(KSM_EXT_SYSFS "state", O_RDONLY);
	ASSERT_LE(0, pfd.fd);
	for (;;) {
		n = pread(pfd.fd, text, sizeof(text) - 1, 0);
		ASSERT_LT(0, n);
		text[n] = 0;
		text[strcspn(text, "\n")] = 0;
		if (!strcmp(text, want))
			break;
		ASSERT_EQ(1, poll(&pfd, 1, 20000)) {
			TH_LOG("state stays %s, does not become %s", text,
			       want);
		}
	}
	close(pfd.fd);
}

static void attach(struct __test_metadata *_metadata,
		   FIXTURE_DATA(policy) *self, struct bpf_map *map)
{
	self->link = bpf_map__attach_struct_ops(map);
	ASSERT_NE(NULL, self->link) {
		TH_LOG("%s: %s", bpf_map__name(map), strerror(errno));
	}
}

/* Wait for the kernel to detach the link: then exit() is over, too. */
static void __wait_for_hangup(struct __test_metadata *_metadata,
			      struct bpf_link *link, int line)
{
	struct pollfd pfd = { .fd = bpf_link__fd(link) };

	ASSERT_EQ(1, poll(&pfd, 1, 20000)) {
		TH_LOG("line %d: the policy stays in charge", line);
	}
	EXPECT_EQ(POLLHUP, pfd.revents);
	expect_text("state", "ejected");
}

#define wait_for_hangup(link) __wait_for_hangup(_metadata, link, __LINE__)

/* The twins are merged, by a policy that works. */
static void wait_until_merged(struct __test_metadata *_metadata,
			      FIXTURE_DATA(policy) *self)
{
	EXPECT_TRUE(WAIT_FOR(counter(_metadata, "aliases") == 2 * NPAGES));
	check_totals(2 * NPAGES);
	for (size_t i = 0; i < NPAGES; i++)
		EXPECT_SHARED(&self->a, i, &self->b, i);
}

/* The policy in charge takes pains, again and again. */
static void expect_running(struct __test_metadata *_metadata)
{
	long slices = counter(_metadata, "slices");

	expect_text("state", "active");
	EXPECT_TRUE(WAIT_FOR(counter(_metadata, "slices") > slices + 2));
}

/* Nothing is merged any more, but what is merged works. */
static void expect_no_merging(struct __test_metadata *_metadata,
			      FIXTURE_DATA(policy) *self)
{
	EXPECT_EQ(-ECANCELED, merge_pages(_metadata, &self->a, 0, &self->b, 0,
					  1));
}

static void write_and_check(struct __test_metadata *_metadata,
			    FIXTURE_DATA(policy) *self)
{
	ASSERT_EQ(5, pwrite(self->a.fd, "hello", 5, HIT * PAGE));
	model_write(_metadata, &self->a, HIT * PAGE, "hello", 5);
	check_file(&self->a);
	check_file(&self->b);
	check_disk(&self->a);
	check_disk(&self->b);
}

/* Back to twins. */
static void make_equal(struct __test_metadata *_metadata,
		       FIXTURE_DATA(policy) *self)
{
	ASSERT_EQ(SIZE, pwrite(self->a.fd, self->b.want, SIZE, 0));
	ASSERT_EQ(0, fsync(self->a.fd));
	model_write(_metadata, &self->a, 0, self->b.want, SIZE);
}

TEST_F(policy, none)
{
	expect_text("policy", "");
	expect_text("state", "none");
	expect_no_merging(_metadata, self);
	check_totals(0);
}

TEST_F(policy, load_and_unload)
{
	attach(_metadata, self, self->skel->maps.churn_a);
	expect_text("policy", "churn_a");
	expect_text("state", "active");
	wait_until_merged(_metadata, self);
	expect_running(_metadata);
	EXPECT_EQ(0, self->skel->bss->exits);

	EXPECT_EQ(0, bpf_link__destroy(self->link));
	self->link = NULL;
	wait_for_state(_metadata, "none");
	expect_text("policy", "");
	expect_text("exit", "unreg");
	EXPECT_EQ(1, self->skel->bss->exits);
	EXPECT_EQ(EXIT_UNREG, self->skel->bss->exit_kind);
	expect_no_merging(_metadata, self);

	/* What is merged stays so, and is as safe as ever. */
	check_totals(2 * NPAGES);
	for (size_t i = 0; i < NPAGES; i++)
		EXPECT_SHARED(&self->a, i, &self->b, i);
	write_and_check(_metadata, self);
	check_totals(2 * NPAGES - 1);
	EXPECT_APART(&self->a, HIT, &self->b, HIT);
}

TEST_F(policy, load_again)
{
	for (int i = 0; i < 3; i++) {
		attach(_metadata, self, self->skel->maps.churn_a);
		wait_until_merged(_metadata, self);
		EXPECT_EQ(0, bpf_link__destroy(self->link));
		self->link = NULL;
		wait_for_state(_metadata, "none");
		write_and_check(_metadata, self);
		make_equal(_metadata, self);
	}
	EXPECT_EQ(3, self->skel->bss->exits);
}

TEST_F(policy, one_at_a_time)
{
	attach(_metadata, self, self->skel->maps.churn_a);
	EXPECT_EQ(NULL, bpf_map__attach_struct_ops(self->skel->maps.churn_b));
	EXPECT_EQ(EBUSY, errno);
	expect_text("policy", "churn_a");
	expect_running(_metadata);
	wait_until_merged(_metadata, self);
	EXPECT_EQ(0, self->skel->bss->exits);
}

TEST_F(policy, swap)
{
	attach(_metadata, self, self->skel->maps.churn_a);
	wait_until_merged(_metadata, self);
	ASSERT_EQ(0, bpf_link__update_map(self->link,
					  self->skel->maps.churn_b));
	check_totals(2 * NPAGES);
	expect_text("policy", "churn_b");
	expect_text("exit", "update");
	EXPECT_EQ(1, self->skel->bss->exits);
	EXPECT_EQ(EXIT_UPDATE, self->skel->bss->exit_kind);
	expect_running(_metadata);
	check_totals(2 * NPAGES);

	/* The new one works. */
	write_and_check(_metadata, self);
	make_equal(_metadata, self);
	wait_until_merged(_metadata, self);
}

struct rewriter {
	struct file *f;
	atomic_bool stop;
	int err;
	unsigned long rounds;
};

/* Break all pages and make them mergeable again, without end. */
static void *rewrite(void *arg)
{
	struct rewriter *w = arg;

	while (!w->stop && !w->err) {
		for (size_t off = 0; off < w->f->size; off += PAGE) {
			size_t len = w->f->size - off;

			if (len > PAGE)
				len = PAGE;
			if (pwrite(w->f->fd, w->f->want + off, len, off) !=
			    (ssize_t)len)
				w->err = errno ?: EIO;
		}
		if (fsync(w->f->fd))
			w->err = errno;
		w->rounds++;
	}
	return NULL;
}

TEST_F(policy, swap_under_load)
{
	struct bpf_map *maps[2] = { self->skel->maps.churn_b,
				    self->skel->maps.churn_a };
	const char *names[2] = { "churn_b", "churn_a" };
	long aliases, least, applied;
	struct rewriter w = {};
	pthread_t thread;
	struct file c;

	/* A and B are left alone; C is written to all the time. */
	file_create(_metadata, &c, self->dir, "c", SIZE, 1);
	add_domain(_metadata, self->skel, &c, 1);
	attach(_metadata, self, self->skel->maps.churn_a);
	ASSERT_TRUE(WAIT_FOR(counter(_metadata, "aliases") == 3 * NPAGES));
	w.f = &c;
	applied = counter(_metadata, "merge/applied");
	least = counter(_metadata, "aliases");
	ASSERT_EQ(0, pthread_create(&thread, NULL, rewrite, &w));
	for (int i = 0; i < 40; i++) {
		EXPECT_EQ(0, bpf_link__update_map(self->link, maps[i % 2]));
		expect_text("policy", names[i % 2]);
		expect_text("state", "active");
		aliases = counter(_metadata, "aliases");
		if (aliases < least)
			least = aliases;
		usleep(5000);
	}
	w.stop = true;
	ASSERT_EQ(0, pthread_join(thread, NULL));
	EXPECT_EQ(0, w.err);
	EXPECT_LT(0, w.rounds);
	/* No swap cost A and B a page, and merging went on. */
	EXPECT_LE(2 * NPAGES, least);
	EXPECT_LT(applied + 3 * NPAGES, counter(_metadata, "merge/applied"));
	EXPECT_EQ(40, self->skel->bss->exits);
	EXPECT_TRUE(WAIT_FOR(counter(_metadata, "aliases") == 3 * NPAGES));
	check_file(&self->a);
	check_file(&self->b);
	check_file(&c);
	for (size_t i = 0; i < NPAGES; i++)
		EXPECT_SHARED(&self->a, i, &c, i);
	file_close(&c);
}

static const struct {
	const char *name;
	int err;
} refused[] = {
	{ "refusing", EPERM },
	{ "no_name", EINVAL },
	{ "slash_in_name", EINVAL },
	{ "endless_name", EINVAL },
	{ "long_timeout", EINVAL },
	{ "slow_init", ETIME },
	{ "positive", EINVAL },
	{ "no_errno", EINVAL },
	{ "umlaut_in_name", EINVAL },
	{ "odd_flags", EINVAL },
	{ "no_link", EINVAL },
};

TEST_F(policy, bad_load)
{
	for (size_t i = 0; i < ARRAY_SIZE(refused); i++) {
		struct bpf_link *link;
		struct bpf_map *map;
		int err;

		map = bpf_object__find_map_by_name(self->skel->obj,
						   refused[i].name);
		ASSERT_NE(NULL, map);
		link = bpf_map__attach_struct_ops(map);
		err = link ? 0 : errno;
		EXPECT_EQ(refused[i].err, err) TH_LOG("%s", refused[i].name);
		bpf_link__destroy(link);
		expect_text("state", "none");
		expect_text("policy", "");
	}
	/* A policy that was never in charge has nothing to end. */
	EXPECT_EQ(0, self->skel->bss->exits);
	expect_no_merging(_metadata, self);
}

TEST_F(policy, bad_swap)
{
	attach(_metadata, self, self->skel->maps.churn_a);
	for (size_t i = 0; i < ARRAY_SIZE(refused); i++) {
		struct bpf_map *map;

		map = bpf_object__find_map_by_name(self->skel->obj,
						   refused[i].name);
		ASSERT_NE(NULL, map);
		EXPECT_EQ(-refused[i].err,
			  bpf_link__update_map(self->link, map)) {
			TH_LOG("%s", refused[i].name);
		}
		expect_text("policy", "churn_a");
		expect_running(_metadata);
		wait_until_merged(_metadata, self);
		write_and_check(_metadata, self);
		make_equal(_metadata, self);
	}
	EXPECT_EQ(0, self->skel->bss->exits);
}

/* Starting over, with the maps as they are, is no swap. */
TEST_F(policy, swap_to_itself)
{
	attach(_metadata, self, self->skel->maps.churn_a);
	wait_until_merged(_metadata, self);
	EXPECT_EQ(-EINVAL, bpf_link__update_map(self->link,
						self->skel->maps.churn_a));
	expect_text("policy", "churn_a");
	expect_running(_metadata);
	EXPECT_EQ(0, self->skel->bss->exits);
	ASSERT_EQ(0, bpf_link__update_map(self->link,
					  self->skel->maps.churn_b));
	expect_running(_metadata);
}

/* ---- programs that are refused ---- */

/* What becomes of the programs in refused.bpf.c, by what they are */
static const struct {
	const char *kind;
	const char *why;	/* what the verifier says; NULL: they load */
} kinds[] = {
	{ "scan", NULL },
	{ "atomic", "program must be sleepable to call sleepable kfunc" },
	{ "tool", NULL },
	{ "stranger", "calling kernel function" },
	{ "trace", "calling kernel function" },
	{ "list", "calling kernel function" },
	{ "ask", NULL },
	{ "null", "Possibly NULL pointer passed to trusted arg" },
	{ "awake", NULL },
	{ "asleep", "attach to unsupported member" },
	{ "read", NULL },
	{ "write", "only read is supported" },
	{ "replace", "invalid bpf_context access" },
};

static bool is_called(const char *name, const char *kind, const char *what)
{
	size_t len = strlen(kind);

	return !strncmp(name, kind, len) && name[len] == '_' &&
	       (!what || !strcmp(name + len + 1, what));
}

/* Where the program belongs in its structure */
static void make_member(struct __test_metadata *_metadata,
			struct refused *skel, struct bpf_program *prog)
{
	const char *member = strchr(bpf_program__section_name(prog), '/') + 1;
	struct bpf_map *map = skel->maps.subject;

	if (!strcmp(member, "scan")) {
		skel->struct_ops.subject->scan = prog;
	} else if (!strcmp(member, "domain")) {
		skel->struct_ops.subject->domain = prog;
	} else if (!strcmp(member, "merged")) {
		skel->struct_ops.subject->merged = prog;
	} else if (!strcmp(member, "broken")) {
		skel->struct_ops.subject->broken = prog;
	} else if (!strcmp(member, "exit")) {
		skel->struct_ops.subject->exit = prog;
	} else {
		ASSERT_EQ(0, strcmp(member, "test_sleepable"));
		skel->struct_ops.stranger->test_sleepable = prog;
		map = skel->maps.stranger;
	}
	ASSERT_EQ(0, bpf_map__set_autocreate(map, true));
}

/* Load that program, and no other.  Return: 0, or an errno and why. */
static int load_alone(struct __test_metadata *_metadata, const char *name,
		      char *log, size_t size)
{
	struct refused *skel = refused__open();
	struct bpf_program *prog;
	int err;

	ASSERT_NE(NULL, skel);
	prog = bpf_object__find_program_by_name(skel->obj, name);
	ASSERT_NE(NULL, prog);
	*log = 0;
	ASSERT_EQ(0, bpf_program__set_log_buf(prog, log, size));
	ASSERT_EQ(0, bpf_program__set_autoload(prog, true));
	if (bpf_program__type(prog) == BPF_PROG_TYPE_STRUCT_OPS)
		make_member(_metadata, skel, prog);
	err = refused__load(skel);
	EXPECT_EQ(!err, bpf_program__fd(prog) >= 0) TH_LOG("%s", name);
	refused__destroy(skel);
	return err;
}

static void expect_load(struct __test_metadata *_metadata, const char *name,
			const char *why)
{
	static char log[1 << 20];
	int err = load_alone(_metadata, name, log, sizeof(log));

	if (why) {
		EXPECT_TRUE(err == -EACCES || err == -EINVAL) {
			TH_LOG("%s: %d", name, err);
		}
		EXPECT_NE(NULL, strstr(log, why)) {
			TH_LOG("%s: no \"%s\" in: %s", name, why, log);
		}
	} else {
		EXPECT_EQ(0, err) TH_LOG("%s: %s", name, log);
	}
}

TEST_F(policy, programs)
{
	struct refused *skel = refused__open();
	unsigned int loaded[ARRAY_SIZE(kinds)] = {};
	struct bpf_program *prog;

	ASSERT_NE(NULL, skel);
	libbpf_set_print(NULL);
	bpf_object__for_each_program(prog, skel->obj) {
		const char *name = bpf_program__name(prog);
		size_t i = 0;

		while (!is_called(name, kinds[i].kind, NULL)) {
			ASSERT_GT(ARRAY_SIZE(kinds), ++i) TH_LOG("%s", name);
		}
		/* Who calls nothing may do so anywhere. */
		expect_load(_metadata, name,
			    is_called(name, kinds[i].kind, "nothing") ?
			    NULL : kinds[i].why);
		loaded[i]++;
	}
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		EXPECT_LT(0, loaded[i]) TH_LOG("%s", kinds[i].kind);
	}
	refused__destroy(skel);
}

/* To load programs is not enough to be told of all files. */
TEST_F(policy, programs_of_others)
{
	struct __user_cap_header_struct head = {
		.version = _LINUX_CAPABILITY_VERSION_3,
	};
	struct __user_cap_data_struct caps[2] = {};
	pid_t pid;

	libbpf_set_print(NULL);
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		caps[CAP_TO_INDEX(CAP_BPF)].permitted = CAP_TO_MASK(CAP_BPF);
		caps[CAP_TO_INDEX(CAP_BPF)].effective = CAP_TO_MASK(CAP_BPF);
		ASSERT_EQ(0, syscall(SYS_capset, &head, caps));
		expect_load(_metadata, "tool_nothing", NULL);
		expect_load(_metadata, "tool_fd", "calling kernel function");
		expect_load(_metadata, "tool_merge", "calling kernel function");
		_exit(_metadata->exit_code);
	}
	reap(_metadata, pid);
}

TEST_F(policy, loader_killed)
{
	struct policies *skel;
	struct bpf_link *link;
	int status;
	pid_t pid;

	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		skel = policies__open_and_load();
		ASSERT_NE(NULL, skel);
		add_domain(_metadata, skel, &self->a, 1);
		add_domain(_metadata, skel, &self->b, 1);
		link = bpf_map__attach_struct_ops(skel->maps.churn_b);
		ASSERT_NE(NULL, link);
		for (;;)
			pause();
	}
	wait_for_state(_metadata, "active");
	wait_until_merged(_metadata, self);
	ASSERT_EQ(0, kill(pid, SIGKILL));
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	wait_for_state(_metadata, "none");
	expect_text("policy", "");
	expect_text("exit", "unreg");
	expect_no_merging(_metadata, self);
	check_totals(2 * NPAGES);
	for (size_t i = 0; i < NPAGES; i++)
		EXPECT_SHARED(&self->a, i, &self->b, i);
	write_and_check(_metadata, self);
	make_equal(_metadata, self);

	/* and there is room for the next one */
	attach(_metadata, self, self->skel->maps.churn_a);
	wait_until_merged(_metadata, self);
}

/* Ejected policies merge nothing, unmerge nothing, and can be replaced. */
static void ejected(struct __test_metadata *_metadata,
		    FIXTURE_DATA(policy) *self, struct bpf_map *map,
		    const char *why, int kind, int code)
{
	attach(_metadata, self, self->skel->maps.churn_a);
	wait_until_merged(_metadata, self);
	ASSERT_EQ(0, bpf_link__update_map(self->link, map));
	wait_for_hangup(self->link);
	expect_text("policy", bpf_map__name(map));
	expect_text("exit", why);
	EXPECT_EQ(2, self->skel->bss->exits);
	EXPECT_EQ(kind, self->skel->bss->exit_kind);
	EXPECT_EQ(code, self->skel->bss->exit_code);
	expect_no_merging(_metadata, self);
	check_totals(2 * NPAGES);
	write_and_check(_metadata, self);
	make_equal(_metadata, self);
	expect_text("state", "ejected");

	/* The link is of no use any more, but there is room for another. */
	EXPECT_EQ(-ENOLINK, bpf_link__update_map(self->link,
						 self->skel->maps.churn_b));
	expect_text("state", "ejected");
	EXPECT_EQ(0, bpf_link__destroy(self->link));
	expect_text("state", "ejected");
	attach(_metadata, self, self->skel->maps.churn_b);
	expect_text("policy", "churn_b");
	expect_running(_metadata);
	wait_until_merged(_metadata, self);
	EXPECT_EQ(2, self->skel->bss->exits);
}

TEST_F(policy, scan_fails)
{
	ejected(_metadata, self, self->skel->maps.failing,
		"error: scan returned -5", EXIT_ERROR, -EIO);
}

TEST_F(policy, scan_stalls)
{
	ejected(_metadata, self, self->skel->maps.stalling, "stall: scan took",
		EXIT_STALL, 0);
}

/* Whoever ends when told to has time to. */
TEST_F(policy, scan_told_to_end)
{
	self->skel->bss->obedient = true;
	attach(_metadata, self, self->skel->maps.stalling);
	expect_running(_metadata);
	expect_text("state", "active");
	EXPECT_LE(2, self->skel->bss->told);
	EXPECT_EQ(0, self->skel->bss->exits);
}

/* The one that does not ask how long it may go on */
TEST_F(policy, scan_loops)
{
	ejected(_metadata, self, self->skel->maps.looping, "stall: scan took",
		EXIT_STALL, 0);
}

/* Waiting is no excuse. */
TEST_F(policy, scan_sleeps)
{
	ejected(_metadata, self, self->skel->maps.sleeping,
		"stall: scan took more than 20 ms", EXIT_STALL, 0);
}

/* The red button on the keyboard */
TEST_F(policy, sysrq)
{
	attach(_metadata, self, self->skel->maps.churn_a);
	wait_until_merged(_metadata, self);
	ASSERT_EQ(0, write_text("/proc/sysrq-trigger", "M"));
	wait_for_hangup(self->link);
	expect_text("exit", "sysrq: somebody pressed SysRq-M");
	EXPECT_EQ(1, self->skel->bss->exits);
	EXPECT_EQ(EXIT_SYSRQ, self->skel->bss->exit_kind);
	check_totals(2 * NPAGES);
	/* Nobody is there to be ejected. */
	ASSERT_EQ(0, write_text("/proc/sysrq-trigger", "M"));
	EXPECT_EQ(0, bpf_link__destroy(self->link));
	attach(_metadata, self, self->skel->maps.churn_b);
	expect_running(_metadata);
}

/* A policy gives up, wherever it is; the first cause wins. */
static void quits(struct __test_metadata *_metadata,
		  FIXTURE_DATA(policy) *self, __u32 where)
{
	char text[128], want[32];

	self->skel->bss->quit_in = where;
	attach(_metadata, self, self->skel->maps.quitter);
	if (where == QUIT_IN_BROKEN) {
		wait_until_merged(_metadata, self);
		ASSERT_EQ(1, pwrite(self->a.fd, self->a.want, 1, 0));
	}
	wait_for_hangup(self->link);
	snprintf(text, sizeof(text), "self: it gave up with code %u: in place %u",
		 where, where);
	expect_text("exit", text);
	EXPECT_EQ(1, self->skel->bss->exits);
	EXPECT_EQ(EXIT_SELF, self->skel->bss->exit_kind);
	EXPECT_EQ(where, self->skel->bss->exit_code);
	snprintf(want, sizeof(want), "in place %u", where);
	EXPECT_EQ(0, strcmp(want, self->skel->bss->exit_msg));

	/* Asked once, and told to stop when all is full */
	EXPECT_EQ(1, self->skel->bss->dumps);
	EXPECT_EQ(-ENOSPC, self->skel->bss->last_dump);
	ASSERT_EQ(0, read_text(KSM_EXT_SYSFS "exit_dump", text, sizeof(text)));
	EXPECT_EQ(0, strcmp("line 0 of 500", text));
	EXPECT_EQ(DUMP_LEN - 1, strlen(self->skel->bss->exit_dump));
	EXPECT_EQ(0, strncmp("line 0 of 500\nline 1 of 500\n",
			     self->skel->bss->exit_dump, 28));

	/* Not everybody can give up, nor tell about it. */
	EXPECT_EQ(-EPERM, self->skel->data->quit_in_init);
	EXPECT_EQ(-EPERM, self->skel->data->quit_in_dump);
	EXPECT_EQ(-EPERM, self->skel->data->quit_in_exit);
	EXPECT_EQ(-EPERM, self->skel->data->dump_in_scan);

	/* Nor is all a message. */
	EXPECT_EQ(-EINVAL, self->skel->bss->quit_with_bad_format);
	EXPECT_EQ(-EINVAL, self->skel->bss->quit_with_half_a_number);
	EXPECT_EQ(-EINVAL, self->skel->bss->quit_with_too_much);
	check_file(&self->a);
	check_file(&self->b);
}

TEST_F(policy, quits_in_scan)
{
	quits(_metadata, self, QUIT_IN_SCAN);
}

TEST_F(policy, quits_in_domain)
{
	quits(_metadata, self, QUIT_IN_DOMAIN);
}

TEST_F(policy, quits_in_merged)
{
	quits(_metadata, self, QUIT_IN_MERGED);
}

TEST_F(policy, quits_in_broken)
{
	quits(_metadata, self, QUIT_IN_BROKEN);
}

/* One loads and unloads what the other one swaps, and all fail at times. */
struct swapper {
	struct policies *skel;
	struct bpf_map *others[4];
	pthread_mutex_t lock;
	int fd;			/* of the link, or -1 */
	atomic_bool stop;
	atomic_ulong loaded, swapped, tries;
	int err;
};

static void *load_and_unload(void *arg)
{
	struct swapper *s = arg;

	while (!s->stop && !s->err) {
		unsigned long tries = s->tries;
		struct bpf_link *link;

		link = bpf_map__attach_struct_ops(s->loaded % 4 ?
						  s->skel->maps.churn_a :
						  s->skel->maps.failing);
		if (!link) {
			/* The one that failed may not be gone yet. */
			if (errno != EBUSY)
				s->err = errno;
			continue;
		}
		s->loaded++;
		pthread_mutex_lock(&s->lock);
		s->fd = bpf_link__fd(link);
		pthread_mutex_unlock(&s->lock);
		while (s->tries < tries + 2 && !s->stop && !s->err)
			sched_yield();
		pthread_mutex_lock(&s->lock);
		s->fd = -1;
		pthread_mutex_unlock(&s->lock);
		bpf_link__destroy(link);
	}
	return NULL;
}

/* A descriptor of its own keeps the link from going while it is swapped. */
static int borrow_link(struct swapper *s)
{
	int fd = -1;

	pthread_mutex_lock(&s->lock);
	if (s->fd >= 0)
		fd = dup(s->fd);
	pthread_mutex_unlock(&s->lock);
	return fd;
}

static void *swap(void *arg)
{
	struct swapper *s = arg;

	for (unsigned int i = 0; !s->stop && !s->err; i++) {
		struct bpf_map *map = s->others[i % ARRAY_SIZE(s->others)];
		int fd = borrow_link(s), err;

		if (fd < 0)
			continue;
		err = bpf_link_update(fd, bpf_map__fd(map), NULL);
		close(fd);
		s->tries++;
		switch (-err) {
		case 0:
			s->swapped++;
			break;
		case ENOLINK:	/* was ejected */
		case EINVAL:	/* is the same one */
		case EPERM:	/* refuses */
			break;
		default:
			s->err = -err;
		}
	}
	return NULL;
}

TEST_F(policy, swap_and_reload)
{
	struct swapper s = {
		.skel = self->skel,
		.others = {
			self->skel->maps.churn_b, self->skel->maps.failing,
			self->skel->maps.refusing, self->skel->maps.looping,
		},
		.lock = PTHREAD_MUTEX_INITIALIZER,
		.fd = -1,
	};
	pthread_t threads[2];

	/* Attached once, if in vain, they can be swapped to. */
	for (size_t i = 0; i < ARRAY_SIZE(s.others); i++)
		bpf_link__destroy(bpf_map__attach_struct_ops(s.others[i]));

	ASSERT_EQ(0, pthread_create(&threads[0], NULL, load_and_unload, &s));
	ASSERT_EQ(0, pthread_create(&threads[1], NULL, swap, &s));
	EXPECT_TRUE(WAIT_FOR(s.err || (s.loaded > 40 && s.swapped > 20)));
	s.stop = true;
	ASSERT_EQ(0, pthread_join(threads[0], NULL));
	ASSERT_EQ(0, pthread_join(threads[1], NULL));
	EXPECT_EQ(0, s.err) TH_LOG("%s", strerror(s.err));

	/* As if nothing had happened, but for one that is not gone yet */
	EXPECT_TRUE(WAIT_FOR((self->link = bpf_map__attach_struct_ops(
				      self->skel->maps.churn_a)) ||
			     errno != EBUSY));
	ASSERT_NE(NULL, self->link) TH_LOG("%s", strerror(errno));
	expect_running(_metadata);
	wait_until_merged(_metadata, self);
	check_file(&self->a);
	check_file(&self->b);
}

/* Stop, go on, stop and unmerge. */
TEST_F(policy, run)
{
	static const char *const nonsense[] = { "3", "-1", "x" };
	long slices;

	attach(_metadata, self, self->skel->maps.churn_a);
	wait_until_merged(_metadata, self);

	ASSERT_EQ(0, write_text(KSM_EXT_SYSFS "run", "0"));
	expect_text("run", "0");
	expect_text("state", "idle");
	expect_text("policy", "churn_a");
	expect_no_merging(_metadata, self);
	check_totals(2 * NPAGES);
	write_and_check(_metadata, self);
	slices = counter(_metadata, "slices");
	make_equal(_metadata, self);
	EXPECT_APART(&self->a, HIT, &self->b, HIT);
	/* a scan that began before the stop may have ended since */
	EXPECT_GE(slices + 1, counter(_metadata, "slices"));

	ASSERT_EQ(0, write_text(KSM_EXT_SYSFS "run", "1"));
	expect_text("state", "active");
	wait_until_merged(_metadata, self);

	ASSERT_EQ(0, write_text(KSM_EXT_SYSFS "run", "2"));
	expect_text("run", "2");
	expect_text("state", "idle");
	check_totals(0);
	EXPECT_COUNTER("pages_shared", 0);
	EXPECT_EQ(NPAGES, resident(_metadata, &self->a));
	EXPECT_EQ(NPAGES, resident(_metadata, &self->b));
	for (size_t i = 0; i < NPAGES; i++)
		EXPECT_APART(&self->a, i, &self->b, i);
	check_file(&self->a);
	check_file(&self->b);
	expect_no_merging(_metadata, self);
	check_totals(0);

	for (size_t i = 0; i < ARRAY_SIZE(nonsense); i++) {
		EXPECT_EQ(-EINVAL, write_text(KSM_EXT_SYSFS "run",
					      nonsense[i]));
		expect_text("run", "2");
	}
	ASSERT_EQ(0, write_text(KSM_EXT_SYSFS "run", "1"));
	wait_until_merged(_metadata, self);
	EXPECT_EQ(0, self->skel->bss->exits);
}

/* It says that pages are equal which are not; bytes say otherwise. */
TEST_F(policy, liar)
{
	long differ = counter(_metadata, "merge/refused_differ");

	attach(_metadata, self, self->skel->maps.liar);
	EXPECT_TRUE(WAIT_FOR(counter(_metadata, "merge/refused_differ") >=
			     differ + 20));
	/* A page may be ready to be shared, and nobody share it. */
	EXPECT_COUNTER("pages_sharing", 0);
	check_file(&self->a);
	check_file(&self->b);
	check_disk(&self->a);
	check_disk(&self->b);
}

/* It has another opinion each time: it is taken at its last word. */
TEST_F(policy, fickle)
{
	long domain = counter(_metadata, "merge/refused_domain");
	long never = counter(_metadata, "merge/refused_no_domain");
	struct rewriter w = { .f = &self->b };
	pthread_t thread;

	ASSERT_EQ(0, write_text(KSM_EXT_SYSFS "thrash_pages", "0"));
	attach(_metadata, self, self->skel->maps.fickle);
	ASSERT_EQ(0, pthread_create(&thread, NULL, rewrite, &w));
	EXPECT_TRUE(WAIT_FOR(self->skel->bss->lawful > 100 &&
			     counter(_metadata, "merge/refused_domain") >
			     domain + 100 &&
			     counter(_metadata, "merge/refused_no_domain") >
			     never + 100));
	w.stop = true;
	ASSERT_EQ(0, pthread_join(thread, NULL));
	EXPECT_EQ(0, w.err);
	EXPECT_EQ(0, self->skel->bss->unlawful);
	expect_text("state", "active");
	check_file(&self->a);
	check_file(&self->b);
	check_disk(&self->a);
	check_disk(&self->b);
}

/* Verbs work in its scan, not for what it leaves behind. */
TEST_F(policy, worker)
{
	attach(_metadata, self, self->skel->maps.employer);
	EXPECT_TRUE(WAIT_FOR(self->skel->bss->worked));
	EXPECT_EQ(-ECANCELED, self->skel->bss->work_discovers);
	EXPECT_EQ(-ECANCELED, self->skel->bss->work_merges);
	EXPECT_EQ(-ECANCELED, self->skel->bss->work_hashes);
	expect_running(_metadata);
}

/* However long it wants to rest, it can be replaced at once. */
TEST_F(policy, scan_wants_to_rest)
{
	static const int pauses[] = { 60 * 60 * 1000, INT_MAX };

	for (size_t i = 0; i < ARRAY_SIZE(pauses); i++) {
		self->skel->bss->answer = pauses[i];
		attach(_metadata, self, self->skel->maps.answering);
		wait_until_merged(_metadata, self);
		write_and_check(_metadata, self);
		make_equal(_metadata, self);
		ASSERT_EQ(0, bpf_link__update_map(self->link,
						  self->skel->maps.churn_a));
		EXPECT_EQ(EXIT_UPDATE, self->skel->bss->exit_kind);
		wait_until_merged(_metadata, self);
		EXPECT_EQ(0, bpf_link__destroy(self->link));
		self->link = NULL;
		write_and_check(_metadata, self);
		make_equal(_metadata, self);
	}
}

/* What is less than nothing is a failure, errno or not; but for one. */
TEST_F(policy, scan_fails_somehow)
{
	static const int failures[] = { -1, -4095, -4096, -123456, INT_MIN };
	char why[64];

	for (size_t i = 0; i < ARRAY_SIZE(failures); i++) {
		self->skel->bss->answer = failures[i];
		attach(_metadata, self, self->skel->maps.answering);
		wait_for_hangup(self->link);
		snprintf(why, sizeof(why), "error: scan returned %d",
			 failures[i]);
		expect_text("exit", why);
		EXPECT_EQ(i + 1, self->skel->bss->exits);
		EXPECT_EQ(EXIT_ERROR, self->skel->bss->exit_kind);
		EXPECT_EQ(failures[i], self->skel->bss->exit_code);
		EXPECT_EQ(0, bpf_link__destroy(self->link));
		self->link = NULL;
	}
	self->skel->bss->answer = -ECANCELED;
	attach(_metadata, self, self->skel->maps.answering);
	expect_running(_metadata);
	wait_until_merged(_metadata, self);
	EXPECT_EQ(ARRAY_SIZE(failures), self->skel->bss->exits);
	check_file(&self->a);
	check_file(&self->b);
}

/* Pages that no file has, and more of them than there may be. */
TEST_F(policy, nonsense)
{
	const __u64 a = file_id(_metadata, &self->a);
	const __u64 b = file_id(_metadata, &self->b);
	const __u64 nobody = 1ULL << 60, far = 1ULL << 40, end = ~0ULL;
	const __u32 max = 256;
	const struct call cases[] = {
		/* The last members: dst, dst_index, src, src_index, nr */
		{ CALL_MERGE, NPAGES, a, 0, b, 0, NPAGES },
		{ CALL_MERGE, NPAGES, a, 0, b, 0, max },
		{ CALL_MERGE, 1, a, NPAGES - 1, b, NPAGES - 1, max },
		{ CALL_MERGE, -ENODATA, a, NPAGES, b, NPAGES, 1 },
		{ CALL_MERGE, -ENODATA, a, 0, b, NPAGES, 1 },
		{ CALL_MERGE, -ENODATA, a, far, b, far, max },
		{ CALL_MERGE, -ENODATA, a, end - max, b, end - max, max },
		{ CALL_MERGE, -EINVAL, a, end - max + 1, b, 0, max },
		{ CALL_MERGE, -EINVAL, a, 0, b, end, 1 },
		{ CALL_MERGE, -EINVAL, a, 0, b, 0, 0 },
		{ CALL_MERGE, -EINVAL, a, 0, b, 0, max + 1 },
		{ CALL_MERGE, -EINVAL, a, 0, b, 0, ~0U },
		{ CALL_MERGE, -EINVAL, a, HIT, a, HIT, 1 },
		{ CALL_MERGE, -EILSEQ, a, 0, a, 1, max },
		{ CALL_MERGE, -EILSEQ, a, 0, b, 1, max },
		{ CALL_MERGE, -ENOENT, nobody, 0, b, 0, 1 },
		{ CALL_MERGE, -ENOENT, a, 0, end, 0, 1 },
		{ CALL_MERGE, -ENOENT, a, 0, 0, 0, 1 },

		{ CALL_UNMERGE, 1, b, NPAGES - 1, 0, 0, max },
		{ CALL_UNMERGE, 0, b, NPAGES, 0, 0, max },
		{ CALL_UNMERGE, 0, b, end - max, 0, 0, max },
		{ CALL_UNMERGE, -EINVAL, b, end, 0, 0, 1 },
		{ CALL_UNMERGE, -EINVAL, b, 0, 0, 0, 0 },
		{ CALL_UNMERGE, -EINVAL, b, 0, 0, 0, max + 1 },
		{ CALL_UNMERGE, -ENOENT, nobody, 0, 0, 0, 1 },

		{ CALL_HASH, NPAGES, a, 0, 0, 0, 8 * max },
		{ CALL_HASH, 0, a, far, 0, 0, 8 * max },
		{ CALL_HASH, -EINVAL, a, end, 0, 0, 8 },
		{ CALL_HASH, -EINVAL, a, 0, 0, 0, 0 },
		{ CALL_HASH, -EINVAL, a, 0, 0, 0, 12 },
		{ CALL_HASH, -EINVAL, a, 0, 0, 0, 8 * max + 8 },
		{ CALL_HASH, -ENOENT, nobody, 0, 0, 0, 8 },

		{ CALL_STAT, 0, .dst = a },
		{ CALL_STAT, -EINVAL, .dst = a, .nr = 1 },
		{ CALL_STAT, -ENOENT, .dst = nobody },
		{ CALL_NAME, 1, .dst = a, .nr = 2 },
		{ CALL_NAME, 1, .dst = a, .nr = 1 },
		{ CALL_NAME, -EINVAL, .dst = a, .nr = 0 },
		{ CALL_NAME, -ENOENT, .dst = nobody, .nr = 2 },
		{ CALL_PATH, -EINVAL, .dst = a, .nr = 0 },
		{ CALL_PATH, -ENOENT, .dst = nobody, .nr = 2 },
		{ CALL_PAGE, 0, .dst = a, .dst_index = HIT },
		{ CALL_PAGE, 0, .dst = a, .dst_index = end },
		{ CALL_PAGE, -EINVAL, .dst = a, .dst_index = HIT, .nr = 1 },
		{ CALL_PAGE, -ENOENT, .dst = nobody },
		{ CALL_DOMAIN, 0, .dst = a },
		{ CALL_DOMAIN, -ENOENT, .dst = nobody },
	};
	struct call *calls = self->skel->bss->calls;

	ASSERT_GE(MAX_CALLS, ARRAY_SIZE(cases));
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		calls[i] = cases[i];
		calls[i].ret = 1 << 30;
	}
	attach(_metadata, self, self->skel->maps.caller);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		const volatile __s32 *ret = &calls[i].ret;

		/* Pages may be busy for a moment. */
		EXPECT_TRUE(WAIT_FOR(*ret == cases[i].ret)) {
			TH_LOG("call %zu: %d, not %d", i, *ret, cases[i].ret);
		}
	}
	EXPECT_EQ(1, self->skel->bss->call_domain);
	expect_running(_metadata);
	for (size_t i = 0; i < NPAGES - 1; i++)
		EXPECT_SHARED(&self->a, i, &self->b, i);
	check_file(&self->a);
	check_file(&self->b);
	check_disk(&self->a);
	check_disk(&self->b);
}

/* Who is not in charge (any more) can not merge in the name of who is. */
TEST_F(policy, merges_outside)
{
	struct policies__bss *bss = self->skel->bss;

	bss->calls[0] = (struct call){
		.verb = CALL_MERGE,
		.dst = file_id(_metadata, &self->a),
		.src = file_id(_metadata, &self->b),
		.nr = NPAGES,
	};
	attach(_metadata, self, self->skel->maps.churn_a);
	wait_until_merged(_metadata, self);
	ASSERT_EQ(0, bpf_link__update_map(self->link, self->skel->maps.caller));
	EXPECT_EQ(-ECANCELED, bss->ret_in_init);
	EXPECT_TRUE(WAIT_FOR(bss->calls[0].ret == NPAGES));
	ASSERT_EQ(0, bpf_link__update_map(self->link,
					  self->skel->maps.churn_a));
	EXPECT_EQ(-ECANCELED, bss->ret_in_exit);
	EXPECT_EQ(0, bss->ret_in_dump);

	bss->answer = -EIO;
	ASSERT_EQ(0, bpf_link__update_map(self->link, self->skel->maps.caller));
	wait_for_hangup(self->link);
	EXPECT_EQ(-ECANCELED, bss->ret_in_dump);
}

/* A policy that says nothing of domains merges nothing. */
TEST_F(policy, no_domain)
{
	long before = counter(_metadata, "merge/refused_no_domain");

	attach(_metadata, self, self->skel->maps.no_domain);
	EXPECT_TRUE(WAIT_FOR(counter(_metadata, "merge/refused_no_domain") >
			     before + 2));
	EXPECT_EQ(-EPERM, merge_pages(_metadata, &self->a, 0, &self->b, 0, 1));
	check_totals(0);
}

/* A scan merges within domains only, whatever it asks for. */
TEST_F(policy, domains)
{
	long before = counter(_metadata, "merge/refused_domain");

	add_domain(_metadata, self->skel, &self->b, 2);
	attach(_metadata, self, self->skel->maps.churn_a);
	EXPECT_TRUE(WAIT_FOR(counter(_metadata, "merge/refused_domain") >
			     before + 2));
	check_totals(0);
	add_domain(_metadata, self->skel, &self->b, 1);
	wait_until_merged(_metadata, self);
}

/* The numbers of a policy mean nothing to the next one. */
TEST_F(policy, domains_of_another)
{
	struct bpf_map *other = self->skel->maps.other_domains;
	struct file c;

	file_create(_metadata, &c, self->dir, "c", SIZE, 1);
	attach(_metadata, self, self->skel->maps.churn_a);
	wait_until_merged(_metadata, self);

	/* A is where it was, by its number, but B is elsewhere now. */
	put_domain(_metadata, other, &self->a, 1);
	put_domain(_metadata, other, &self->b, 2);
	put_domain(_metadata, other, &c, 1);
	ASSERT_EQ(0, bpf_link__update_map(self->link, self->skel->maps.other));
	EXPECT_EQ(-EXDEV, merge_pages(_metadata, &self->a, 0, &c, 0, 1));
	EXPECT_EQ(-EXDEV, merge_pages(_metadata, &c, 0, &self->a, 0, 1));
	EXPECT_EQ(-EXDEV, merge_pages(_metadata, &self->b, 0, &c, 0, 1));
	EXPECT_APART(&self->a, 0, &c, 0);
	/* What is merged stays merged. */
	check_totals(2 * NPAGES);

	/* All are of one domain, whatever its number: nothing is lost. */
	put_domain(_metadata, other, &self->a, 7);
	put_domain(_metadata, other, &self->b, 7);
	put_domain(_metadata, other, &c, 7);
	EXPECT_EQ(NPAGES, merge_pages(_metadata, &self->a, 0, &c, 0, NPAGES));
	EXPECT_SHARED(&self->a, 0, &c, 0);
	check_totals(3 * NPAGES);
	check_file(&c);
	file_close(&c);
}

/* ---- tracepoints ---- */

/* What they told, by kind */
static struct {
	unsigned int pages, times;
	struct traced last;
} traced[TRACE_EJECT + 1];

static int note_traced(void *ctx, void *data, size_t size)
{
	const struct traced *event = data;

	traced[event->kind].pages += event->nr;
	traced[event->kind].times++;
	traced[event->kind].last = *event;
	return 0;
}

static void expect_traced(struct __test_metadata *_metadata,
			  struct ring_buffer *ring, enum trace_kind kind,
			  __u64 file, __u64 index, const char *text)
{
	const struct traced *last = &traced[kind].last;

	while (!traced[kind].times) {
		ASSERT_LT(0, ring_buffer__poll(ring, 20000)) {
			TH_LOG("tracepoint %d tells nothing", kind);
		}
	}
	EXPECT_EQ(file, last->file);
	EXPECT_EQ(index, last->index);
	EXPECT_EQ(0, strcmp(text, last->text)) {
		TH_LOG("\"%s\", not \"%s\"", last->text, text);
	}
}

TEST_F(policy, tracepoints)
{
	struct trace *trace = trace__open_and_load();
	struct ring_buffer *ring;
	struct stat st;
	__u64 b;

	ASSERT_NE(NULL, trace) TH_LOG("%s", strerror(errno));
	ASSERT_EQ(0, trace__attach(trace));
	ring = ring_buffer__new(bpf_map__fd(trace->maps.events), note_traced,
				NULL, NULL);
	ASSERT_NE(NULL, ring);
	put_domain(_metadata, self->skel->maps.other_domains, &self->a, 1);
	put_domain(_metadata, self->skel->maps.other_domains, &self->b, 1);
	attach(_metadata, self, self->skel->maps.other);
	b = file_id(_metadata, &self->b);
	ASSERT_EQ(NPAGES, merge_pages(_metadata, &self->a, 0, &self->b, 0,
				      NPAGES));
	expect_traced(_metadata, ring, TRACE_MERGE, b,
		      traced[TRACE_MERGE].last.index, "");
	ring_buffer__consume(ring);
	EXPECT_EQ(NPAGES, traced[TRACE_MERGE].pages);

	/* Pages may have been refused for a while; not for this reason. */
	traced[TRACE_REFUSE].times = 0;
	EXPECT_EQ(-EILSEQ, try_merge(_metadata, &self->a, 0, &self->b, HIT, 1));
	expect_traced(_metadata, ring, TRACE_REFUSE, b, HIT, "refused_differ");

	ASSERT_EQ(0, fstat(self->a.fd, &st));
	write_and_check(_metadata, self);
	expect_traced(_metadata, ring, TRACE_BREAK, st.st_ino, HIT, "write");
	EXPECT_EQ(1, traced[TRACE_BREAK].pages);

	EXPECT_EQ(0, traced[TRACE_EJECT].times);
	ASSERT_EQ(0, bpf_link__update_map(self->link,
					  self->skel->maps.failing));
	expect_traced(_metadata, ring, TRACE_EJECT, 0, 0, "failing");
	wait_for_hangup(self->link);
	EXPECT_EQ(1, traced[TRACE_EJECT].times);
	EXPECT_EQ(0, trace->bss->lost);
	ring_buffer__free(ring);
	trace__destroy(trace);
}

/* What tells of other people's files is for root; the rest for all. */
TEST_F(policy, sysfs_is_private)
{
	static const char *const hidden[] = {
		"aliases", "pages_shared", "pages_sharing", "pages_fake",
		"general_profit",
		"merge/tried", "merge/applied", "break/write",
	};
	pid_t pid;

	attach(_metadata, self, self->skel->maps.churn_a);
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		ASSERT_EQ(0, setgid(65534));
		ASSERT_EQ(0, setuid(65534));
		for (size_t i = 0; i < ARRAY_SIZE(hidden); i++) {
			char path[MAX_PATH], text[64];

			snprintf(path, MAX_PATH, KSM_EXT_SYSFS "%s",
				 hidden[i]);
			EXPECT_EQ(-EACCES, read_text(path, text, 64)) {
				TH_LOG("%s", hidden[i]);
			}
		}
		expect_text("policy", "churn_a");
		EXPECT_EQ(-EACCES, write_text(KSM_EXT_SYSFS "run", "0"));
		_exit(_metadata->exit_code);
	}
	reap(_metadata, pid);
}

int main(int argc, char **argv)
{
	/* Its programs call the verbs; as a policy it stays away. */
	manual_load();
	return test_harness_run(argc, argv);
}
