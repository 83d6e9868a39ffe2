/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The twin fuzzer's files, their models, and what a check is.
 *
 * A few files start with equal contents.  Each has an exact model in memory
 * that another process, the peer, sees too.  An operation changes the file by
 * some way that Linux offers and then tells the model (changed()); a check
 * compares bytes that were read by some way with the model (compare()).
 *
 * Whatever is wrong ends the sequence of operations: fail() notes what it was
 * and leaves by siglongjmp().  So operations keep what they open or map in
 * struct twin, where files_end() finds it.
 */
#ifndef TWIN_ENGINE_H
#define TWIN_ENGINE_H

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <libaio.h>
#include <liburing.h>

#include "../ksm_ext_test.h"
/* Of the kernel tree */
#include "../../../lib/test_hmm_uapi.h"
#include "../../../mm/gup_test.h"
#include "../../include/uapi/linux/userfaultfd.h"

#define NFILES		4
#define MAX_PAGES	32
#define MAX_SIZE	(MAX_PAGES * PAGE)
#define FIRST_SIZE	(15 * PAGE + 1000)

/* Contents are pieces of pages filled from one of these, at the same offset. */
#define NPATTERNS	6
/* Or by this, and the number of the page */
#define NUMBERED	0xe0

/* An operation of that many seconds, twice as long at most, hangs. */
#define HANG_SECONDS	10
#define HANG_SECONDS_SHRINK 1

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

/*
 * One operation.  Numbers are as the generator drew them: what does not fit
 * the file's size by then is cut, so a sequence stays valid if operations are
 * taken out of it.
 */
struct op {
	unsigned char code;	/* index in ops[] */
	unsigned char way;	/* index in ops[].ways */
	unsigned char file;
	unsigned char other;	/* always another file */
	unsigned char pattern;	/* NPATTERNS or more: copy the other file */
	unsigned char nth;	/* allocation or request to fail, 0: none */
	unsigned int off;
	unsigned int len;
	unsigned int off2;	/* in the other file */
};

struct twin_file {
	struct file f;		/* want: shared, MAX_SIZE, zeros behind size */
	int direct;
	unsigned char *slot[2];	/* addresses where the kept mapping may be */
	unsigned char *map;	/* the kept mapping: one of them */
	unsigned char *own_slot;
	unsigned char *own;	/* a kept MAP_PRIVATE mapping, or NULL */
	unsigned char *mine;	/* what it holds in pages written through it */
	bool written[MAX_PAGES];
	__u64 id;		/* the kernel's, 0: not asked yet */
};

/* Another process that maps the files, does as told, and answers. */
struct order {
	enum { PEER_MAP, PEER_STORE, PEER_CHECK } what;
	unsigned int file;
	size_t off;
	size_t len;
};

struct answer {
	size_t bad;		/* first wrong byte, len: none */
	unsigned char got;
};

struct peer {
	pid_t pid;
	int orders[2];
	int answers[2];
};

struct twin {
	struct __test_metadata *_metadata;
	bool storm;		/* somebody else merges, and others do the same */
	bool trace;
	bool xfs;
	bool no_pokes;		/* nothing is written through pins of pages */
	bool no_reads_to_map;	/* ... even if nobody else writes pages back */
	bool pins;		/* the driver that pins pages is this thread's */
	bool keep;		/* files stay at the end, for umount */
	bool faults;		/* allocations and requests fail on purpose */
	struct twin_file files[NFILES];
	struct peer peer;

	unsigned char *shared;	/* the models and data */
	unsigned char *data;	/* MAX_SIZE: new contents */
	unsigned char *io;	/* MAX_SIZE: what was read */
	unsigned char *area;	/* reserved addresses */
	unsigned char *fresh;	/* those of mappings for one operation */
	unsigned char pattern[NPATTERNS][PAGE];
	int pipe[2], tee[2], held[2];
	struct io_uring ring;
	io_context_t aio;
	int uffd;
	int device;
	int gup;		/* the driver that pins pages */
	struct twin_file *pinned;	/* whose pages it holds, or NULL */
	size_t pin_off, pin_len;
	int fail_nth;		/* /proc/thread-self/fail-nth */
	int fail_io;		/* make-it-fail of the disk */
	const int *declines;	/* errors by which a call may say no */

	volatile unsigned long steps;	/* for the watchdog */
	unsigned long watched;
	timer_t timer;
	size_t now;		/* operation of the sequence */
	bool armed;		/* something may fail on purpose */
	bool injected;		/* something did, in this operation */
	unsigned long nr_injected;
	unsigned long declined;
	unsigned long merged;
	sigjmp_buf escape;
	sigjmp_buf *bus_error;	/* where SIGBUS leads, or NULL: it is wrong */
	char failure[512];
};

/* The context of this thread, for signal handlers. */
static __thread struct twin *me;

/* ---- failures ---- */

static void __attribute__((noreturn, format(printf, 2, 3)))
fail(struct twin *t, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vsnprintf(t->failure, sizeof(t->failure), fmt, args);
	va_end(args);
	siglongjmp(t->escape, 1);
}

static void on_bus_error(int sig, siginfo_t *info, void *context)
{
	if (!me)
		_exit(sig);
	if (me->bus_error)
		siglongjmp(*me->bus_error, 1);
	fail(me, "SIGBUS at %p", info->si_addr);
}

/* Between two ticks something has to have happened. */
static void on_tick(int sig)
{
	int status = 0;

	if (!me)
		return;
	if (me->watched == me->steps) {
		/* Do we wait for the peer?  It may be dead. */
		if (me->peer.pid > 0 &&
		    waitpid(me->peer.pid, &status, WNOHANG) == me->peer.pid)
			me->peer.pid = 0;
		fail(me, "hangs (the other process: status 0x%x)", status);
	}
	me->watched = me->steps;
}

static void watch(struct twin *t, unsigned int seconds)
{
	struct itimerspec spec = {
		.it_interval.tv_sec = seconds,
		.it_value.tv_sec = seconds,
	};

	timer_settime(t->timer, 0, &spec, NULL);
}


/* ---- faults on purpose ---- */

static void write_back(struct twin_file *f)
{
	sync_file_range(f->f.fd, 0, 0, SYNC_FILE_RANGE_WAIT_BEFORE |
			SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
}

/*
 * From here on the @nth thing that can fail on purpose in this thread does:
 * allocations, and requests to the disk if @io.  When writeback fails, what was
 * written before is lost, and may be: so nothing is left for it to write.
 */
static void faults_begin(struct twin *t, unsigned int nth, bool io)
{
	char text[16];
	int len = snprintf(text, sizeof(text), "%u", nth);

	if (!nth)
		return;
	for (int i = 0; i < NFILES; i++)
		write_back(&t->files[i]);
	if (io)
		pwrite(t->fail_io, "1", 1, 0);
	if (pwrite(t->fail_nth, text, len, 0) != len)
		fail(t, "fail-nth: %s", strerror(errno));
	t->armed = true;
}

/* The kernel has counted fail-nth down to 0 if something failed. */
static void faults_end(struct twin *t)
{
	int err = errno;
	char left;

	if (!t->armed)
		return;
	t->armed = false;
	t->injected = pread(t->fail_nth, &left, 1, 0) == 1 && left == '0';
	t->nr_injected += t->injected;
	pwrite(t->fail_nth, "0", 1, 0);
	pwrite(t->fail_io, "0", 1, 0);
	errno = err;
}

/* Did it work?  If not, it must be one of the errors that the op may have. */
static bool done(struct twin *t, const char *what, long ret)
{
	if (ret >= 0)
		return true;
	faults_end(t);
	if (t->injected)
		return false;
	for (const int *may = t->declines; may && *may; may++) {
		if (errno == *may) {
			t->declined++;
			return false;
		}
	}
	fail(t, "%s: %s", what, strerror(errno));
}

/* ---- the peer ---- */

static char name_of(const struct twin *t, const struct twin_file *f)
{
	return 'A' + (f - t->files);
}

static void peer_map(struct twin_file *f)
{
	int fd = open(f->f.path, O_RDWR);

	if (fd < 0 || mmap(f->slot[0], MAX_SIZE, PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
		_exit(1);
	close(fd);
}

static void peer_check(struct twin_file *f, const struct order *order,
		       struct answer *answer)
{
	const unsigned char *seen = f->slot[0] + order->off;
	const unsigned char *want = f->f.want + order->off;

	answer->bad = order->len;
	if (!memcmp(seen, want, order->len))
		return;
	answer->bad = 0;
	while (answer->bad + 1 < order->len &&
	       seen[answer->bad] == want[answer->bad])
		answer->bad++;
	answer->got = seen[answer->bad];
}

/* In a child of a process with threads: system calls only. */
static void __attribute__((noreturn)) peer_run(struct twin *t)
{
	struct order order;
	struct answer answer = {};

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGBUS, SIG_DFL);
	signal(SIGALRM, SIG_IGN);
	close(t->peer.orders[1]);
	close(t->peer.answers[0]);
	while (read(t->peer.orders[0], &order, sizeof(order)) ==
	       sizeof(order)) {
		struct twin_file *f = &t->files[order.file];

		switch (order.what) {
		case PEER_MAP:
			peer_map(f);
			break;
		case PEER_STORE:
			memcpy(f->slot[0] + order.off, t->data, order.len);
			break;
		case PEER_CHECK:
			peer_check(f, &order, &answer);
			break;
		}
		if (write(t->peer.answers[1], &answer, sizeof(answer)) !=
		    sizeof(answer))
			break;
	}
	_exit(0);
}

static void __attribute__((noreturn))
peer_died(struct twin *t, struct twin_file *f, int what, size_t off, size_t len)
{
	int status = 0;

	waitpid(t->peer.pid, &status, 0);
	t->peer.pid = 0;
	fail(t, "file %c: another process died (status 0x%x) of order %d, offset 0x%zx length 0x%zx (size 0x%zx)",
	     name_of(t, f), status, what, off, len, f->f.size);
}

static struct answer peer_ask(struct twin *t, struct twin_file *f, int what,
			      size_t off, size_t len)
{
	struct order order = {
		.what = what, .file = f - t->files, .off = off, .len = len,
	};
	struct answer answer;

	if (write(t->peer.orders[1], &order, sizeof(order)) != sizeof(order) ||
	    read(t->peer.answers[0], &answer, sizeof(answer)) !=
	    sizeof(answer))
		peer_died(t, f, what, off, len);
	return answer;
}

static void close_pipe(int *fd)
{
	for (int i = 0; i < 2; i++) {
		if (fd[i] >= 0)
			close(fd[i]);
		fd[i] = -1;
	}
}

static void peer_begin(struct twin *t)
{
	if (pipe(t->peer.orders) || pipe(t->peer.answers))
		fail(t, "pipe: %s", strerror(errno));
	t->peer.pid = fork();
	if (t->peer.pid < 0)
		fail(t, "fork: %s", strerror(errno));
	if (!t->peer.pid)
		peer_run(t);
	close(t->peer.orders[0]);
	close(t->peer.answers[1]);
	t->peer.orders[0] = t->peer.answers[1] = -1;
}

static void peer_end(struct twin *t)
{
	if (t->peer.pid > 0) {
		kill(t->peer.pid, SIGKILL);
		waitpid(t->peer.pid, NULL, 0);
	}
	t->peer.pid = 0;
	close_pipe(t->peer.orders);
	close_pipe(t->peer.answers);
}

/* ---- models ---- */

/* How much of an operation's range is in the file. */
static size_t inside(const struct twin_file *f, size_t off, size_t len)
{
	if (off >= f->f.size)
		return 0;
	return len < f->f.size - off ? len : f->f.size - off;
}

/* How much of it the file may grow to. */
static size_t room(size_t off, size_t len)
{
	return len < MAX_SIZE - off ? len : MAX_SIZE - off;
}

static size_t page_end(size_t off)
{
	return (off + PAGE - 1) & -PAGE;
}

/* Bytes are as the model says, those behind the end of the file too. */
static void compare(struct twin *t, const struct twin_file *f, const char *how,
		    const unsigned char *seen, size_t off, size_t len)
{
	const unsigned char *want = f->f.want + off;
	char got[32] = "", wanted[32] = "";
	size_t i = 0;

	if (!memcmp(seen, want, len))
		return;
	while (i + 1 < len && seen[i] == want[i])
		i++;
	for (size_t j = 0; j < 8 && i + j < len; j++) {
		sprintf(got + 3 * j, " %02x", seen[i + j]);
		sprintf(wanted + 3 * j, " %02x", want[i + j]);
	}
	fail(t, "file %c by %s: offset 0x%zx (size 0x%zx): got%s, expected%s",
	     name_of(t, f), how, off + i, f->f.size, got, wanted);
}

/*
 * xfs refuses a direct read of blocks that wait for allocation, as those that
 * were reserved behind the end of the file and are inside by now.  It takes
 * that for a collision with a write.
 */
static void may_collide(struct twin *t)
{
	static const int declines[] = { EIO, 0 };

	if (t->xfs)
		t->declines = declines;
}

/* Of a call that gave @n bytes: it may not give less than there is. */
static void compare_read(struct twin *t, const struct twin_file *f,
			 const char *how, size_t off, size_t len, ssize_t n)
{
	len = inside(f, off, len);
	if (!done(t, how, n))
		return;
	if (n != len) {
		faults_end(t);
		if (!t->injected || n > len)
			fail(t, "file %c by %s: offset 0x%zx: %zd bytes, expected %zu",
			     name_of(t, f), how, off, n, len);
	}
	compare(t, f, how, t->io, off, n);
}

/* Addresses stay reserved: other threads map things, too. */
static void unmap_at(void *addr)
{
	mmap(addr, MAX_SIZE, PROT_NONE,
	     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

/* What was written through the private mapping stays, until it is cut off. */
static void own_end(struct twin *t, struct twin_file *f)
{
	if (!f->own)
		return;
	unmap_at(f->own_slot);
	f->own = NULL;
	memset(f->written, 0, sizeof(f->written));
}

/*
 * After a call that failed half way each byte may be old or new: look which.
 * From then on they have to stay so.
 */
static void settle(struct twin *t, struct twin_file *f, size_t off,
		   const unsigned char *data, size_t len, size_t size)
{
	size_t low = size < f->f.size ? size : f->f.size;
	size_t high = size < f->f.size ? f->f.size : size;
	struct stat st;
	ssize_t n;

	if (fstat(f->f.fd, &st) || st.st_size < low || st.st_size > high)
		fail(t, "file %c: size 0x%zx after a failed call, expected 0x%zx to 0x%zx",
		     name_of(t, f), (size_t)st.st_size, low, high);
	/* what was cut off is zero, and so is what comes later */
	for (size_t i = st.st_size; i < f->f.size; i++)
		f->f.want[i] = 0;
	f->f.size = st.st_size;
	len = inside(f, off, len);
	n = pread(f->f.fd, t->io, len, off);
	if (n != len)
		fail(t, "file %c: read after a failed call: %zd, expected %zu",
		     name_of(t, f), n, len);
	for (size_t i = 0; i < len; i++) {
		if (t->io[i] == (data ? data[i] : 0))
			f->f.want[off + i] = t->io[i];
	}
	compare(t, f, "read after a failed call", t->io, off, len);
}

/*
 * A call was to set @len bytes at @off to @data (NULL: to zero) and the size to
 * @size.  It was done, or failed in a way that it may.
 */
static void changed(struct twin *t, struct twin_file *f, size_t off,
		    const unsigned char *data, size_t len, size_t size, bool ok)
{
	faults_end(t);
	if (size < f->f.size)
		own_end(t, f);
	if (!ok) {
		if (t->injected)
			settle(t, f, off, data, len, size);
		return;
	}
	if (data)
		memcpy(f->f.want + off, data, len);
	else
		memset(f->f.want + off, 0, len);
	if (size < f->f.size)
		memset(f->f.want + size, 0, f->f.size - size);
	f->f.size = size;
}

/* A call wrote @n of @len bytes, or failed. */
static void wrote(struct twin *t, struct twin_file *f, const char *how,
		  size_t off, const unsigned char *data, size_t len, ssize_t n)
{
	size_t old = f->f.size;

	if (done(t, how, n)) {
		size_t end = off + n;

		changed(t, f, off, data, n, end > old ? end : old, true);
		off += n;
		data += n;
		len -= n;
	}
	if (len) {
		size_t end = off + len;

		changed(t, f, off, data, len, end > old ? end : old, false);
	}
}

/* The new contents of an operation, in t->data. */
static const unsigned char *new_data(struct twin *t, const struct op *op,
				     size_t off, size_t len)
{
	if (op->pattern >= NPATTERNS)
		return memcpy(t->data, t->files[op->other].f.want + off, len);
	for (size_t i = 0, n; i < len; i += n) {
		size_t at = (off + i) % PAGE;

		n = len - i < PAGE - at ? len - i : PAGE - at;
		memcpy(t->data + i, t->pattern[op->pattern] + at, n);
	}
	return t->data;
}

/* ---- files ---- */

static void *map_at(struct twin *t, void *addr, int fd, int prot, int flags)
{
	void *map = mmap(addr, MAX_SIZE, prot, flags | MAP_FIXED, fd, 0);

	return done(t, "mmap", map == MAP_FAILED ? -1 : 0) ? map : NULL;
}

/* Open what is at the file's path now, and map it everywhere. */
static void file_begin(struct twin *t, struct twin_file *f)
{
	f->f.fd = open(f->f.path, O_RDWR);
	f->direct = open(f->f.path, O_RDWR | O_DIRECT);
	if (f->f.fd < 0 || f->direct < 0)
		fail(t, "%s: %s", f->f.path, strerror(errno));
	f->map = f->slot[0];
	f->id = 0;
	map_at(t, f->map, f->f.fd, PROT_READ | PROT_WRITE, MAP_SHARED);
	peer_ask(t, f, PEER_MAP, 0, 0);
}

static void file_end(struct twin *t, struct twin_file *f)
{
	if (f->f.fd < 0)
		return;
	own_end(t, f);
	unmap_at(f->slot[0]);
	unmap_at(f->slot[1]);
	close(f->f.fd);
	close(f->direct);
	f->f.fd = -1;
}

/* A new file of the first @size bytes of t->data. */
static void make_file(struct twin *t, const char *path, size_t size)
{
	int fd;

	unlink(path);
	fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0644);
	if (fd < 0 || pwrite(fd, t->data, size, 0) != size)
		fail(t, "cannot make %s: %s", path, strerror(errno));
	close(fd);
}

static void pipes_begin(struct twin *t)
{
	if (pipe(t->pipe) || pipe(t->tee) || pipe(t->held))
		fail(t, "pipe: %s", strerror(errno));
	/* room for all pages of a file, and for its unaligned ends */
	fcntl(t->pipe[0], F_SETPIPE_SZ, 2 * MAX_SIZE);
	fcntl(t->tee[0], F_SETPIPE_SZ, 2 * MAX_SIZE);
}

/* There is one pin in all, which one thread may use. */
static void pin_end(struct twin *t)
{
	if (t->pins)
		ioctl(t->gup, PIN_LONGTERM_TEST_STOP);
	t->pinned = NULL;
}

static void pipes_end(struct twin *t)
{
	close_pipe(t->pipe);
	close_pipe(t->tee);
	close_pipe(t->held);
}

static void files_begin(struct twin *t)
{
	for (size_t i = 0; i < MAX_PAGES; i++)
		memcpy(t->data + i * PAGE, t->pattern[i % NPATTERNS], PAGE);
	peer_begin(t);
	for (int i = 0; i < NFILES; i++) {
		struct twin_file *f = &t->files[i];

		memset(f->f.want, 0, MAX_SIZE);
		memcpy(f->f.want, t->data, FIRST_SIZE);
		f->f.size = FIRST_SIZE;
		make_file(t, f->f.path, FIRST_SIZE);
		file_begin(t, f);
	}
	pipes_begin(t);
}

static void files_end(struct twin *t)
{
	faults_end(t);
	t->bus_error = NULL;
	pin_end(t);
	peer_end(t);
	for (int i = 0; i < NFILES; i++) {
		file_end(t, &t->files[i]);
		if (!t->keep)
			unlink(t->files[i].f.path);
	}
	unmap_at(t->fresh);
	pipes_end(t);
}

/* ---- contexts ---- */

/* With two fixed buffers: data and io. */
static int ring_begin(struct twin *t)
{
	struct iovec bufs[] = { { t->data, MAX_SIZE }, { t->io, MAX_SIZE } };

	return io_uring_queue_init(4, &t->ring, 0) ?:
	       io_uring_register_buffers(&t->ring, bufs, 2);
}

static void twin_begin(struct __test_metadata *_metadata, struct twin *t,
		       const char *dir)
{
	const size_t slots = 3 * NFILES + 1;
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_WP_ASYNC,
	};
	unsigned char *slot;

	t->_metadata = _metadata;
	t->xfs = fs_magic(dir) == XFS_SUPER_MAGIC;
	/*
	 * btrfs fails writeback of a page that was written back between the pin
	 * and the write through it.  Others do that, as reclaim may; so does
	 * the next operation after a direct read, since whoever reads is woken
	 * before the pages become dirty (iomap_dio_bio_end_io()).
	 */
	t->no_reads_to_map = fs_magic(dir) == BTRFS_SUPER_MAGIC;
	t->no_pokes = t->storm && t->no_reads_to_map;
	t->trace = number_from_env("KSM_EXT_TRACE", 0);
	t->shared = mmap(NULL, (NFILES + 1) * MAX_SIZE, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, t->shared);
	t->data = t->shared + NFILES * MAX_SIZE;
	t->io = page_buffer(_metadata, MAX_SIZE);
	t->area = mmap(NULL, slots * MAX_SIZE, PROT_NONE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_NE(MAP_FAILED, t->area);
	slot = t->area;
	for (int i = 0; i < NFILES; i++) {
		struct twin_file *f = &t->files[i];

		ASSERT_GT(MAX_PATH, snprintf(f->f.path, MAX_PATH, "%s/%c", dir,
					     name_of(t, f)));
		f->f.fd = -1;
		f->f.want = t->shared + i * MAX_SIZE;
		f->mine = page_buffer(_metadata, MAX_SIZE);
		f->slot[0] = slot;
		f->slot[1] = slot + MAX_SIZE;
		f->own_slot = slot + 2 * MAX_SIZE;
		slot += 3 * MAX_SIZE;
	}
	t->fresh = slot;
	for (int i = 0; i < 2; i++) {
		t->peer.orders[i] = t->peer.answers[i] = -1;
		t->pipe[i] = t->tee[i] = t->held[i] = -1;
	}

	/* The first three bits of a byte tell its pattern; 0 is all zeros. */
	for (int i = 1; i < NPATTERNS; i++) {
		fill(t->pattern[i], PAGE, 1);
		for (size_t j = 0; j < PAGE; j++)
			t->pattern[i][j] = i << 5 | t->pattern[i][j] >> 3;
	}
	ASSERT_EQ(0, ring_begin(t));
	ASSERT_EQ(0, io_setup(4, &t->aio));
	t->uffd = syscall(SYS_userfaultfd, O_CLOEXEC);
	ASSERT_LE(0, t->uffd) TH_LOG("%s", strerror(errno));
	ASSERT_EQ(0, ioctl(t->uffd, UFFDIO_API, &api)) {
		TH_LOG("%s", strerror(errno));
	}
	t->device = open("/dev/hmm_dmirror0", O_RDWR);
	ASSERT_LE(0, t->device) TH_LOG("%s", strerror(errno));
	t->gup = open("/sys/kernel/debug/gup_test", O_RDWR);
	ASSERT_LE(0, t->gup) TH_LOG("%s", strerror(errno));
}

static void twin_end(struct twin *t)
{
	io_destroy(t->aio);
	io_uring_queue_exit(&t->ring);
	close(t->uffd);
	close(t->device);
	close(t->gup);
	for (int i = 0; i < NFILES; i++)
		free(t->files[i].mine);
	munmap(t->area, (3 * NFILES + 1) * MAX_SIZE);
	munmap(t->shared, (NFILES + 1) * MAX_SIZE);
	free(t->io);
}

/* This thread is the one to use the context from now on. */
static bool twin_enter(struct twin *t)
{
	struct sigevent event = {
		.sigev_notify = SIGEV_THREAD_ID,
		.sigev_signo = SIGALRM,
		.sigev_notify_thread_id = syscall(SYS_gettid),
	};

	if (timer_create(CLOCK_MONOTONIC, &event, &t->timer))
		return false;
	t->fail_nth = open("/proc/thread-self/fail-nth", O_RDWR);
	me = t;
	watch(t, HANG_SECONDS);
	return true;
}

static void twin_leave(struct twin *t)
{
	timer_delete(t->timer);
	me = NULL;
	if (t->fail_nth >= 0)
		close(t->fail_nth);
}

#endif /* TWIN_ENGINE_H */
