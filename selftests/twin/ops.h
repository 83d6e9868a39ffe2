/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The operations of the twin fuzzer: one function for each, in the order of the
 * table at the end.  The ways of an operation are the variants that it has.
 *
 * An operation whose range is not in the file does nothing.
 */
#ifndef TWIN_OPS_H
#define TWIN_OPS_H

#include <sched.h>
#include <sys/ioctl.h>
#include <sys/sendfile.h>
#include <linux/falloc.h>
#include <linux/fs.h>

#include "engine.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ	22
#define MADV_POPULATE_WRITE	23
#endif
#ifndef MADV_SOFT_OFFLINE
#define MADV_SOFT_OFFLINE	101
#endif

#define SECTOR	512UL

/* How long a storm leaves new twins to the policy */
#define POLICY_US	10000

static struct twin_file *file_of(struct twin *t, const struct op *op)
{
	return &t->files[op->file];
}

static struct twin_file *other_of(struct twin *t, const struct op *op)
{
	return &t->files[op->other];
}

/* What stands in the other file, as new contents. */
static const unsigned char *other_data(struct twin *t, const struct op *op,
				       size_t off, size_t len)
{
	return memcpy(t->data, other_of(t, op)->f.want + off, len);
}

static size_t larger(size_t a, size_t b)
{
	return a > b ? a : b;
}

/* ---- read and write ---- */

enum {
	WRITE, WRITE_TWO, WRITE_APPEND, WRITE_NOWAIT, WRITE_TWIN, WRITE_DSYNC,
};

static void op_write(struct twin *t, const struct op *op)
{
	static const int flags[] = {
		[WRITE_APPEND] = RWF_APPEND,
		[WRITE_DSYNC] = RWF_DSYNC,
		[WRITE_NOWAIT] = RWF_NOWAIT,
	};
	static const int declines[] = { EAGAIN, EOPNOTSUPP, 0 };
	struct twin_file *f = file_of(t, op);
	size_t off = op->way == WRITE_APPEND ? f->f.size : op->off;
	size_t len = room(off, op->len);
	size_t part;
	const unsigned char *data;
	struct iovec iov[2];

	if (op->way == WRITE_TWIN) {
		/* all that the other file holds: there is much to merge then */
		off = 0;
		len = other_of(t, op)->f.size;
		data = other_data(t, op, off, len);
	} else {
		data = new_data(t, op, off, len);
	}
	part = op->way == WRITE_TWO ? len / 3 : len;
	iov[0] = (struct iovec){ (void *)data, part };
	iov[1] = (struct iovec){ (void *)data + part, len - part };
	if (op->way == WRITE_NOWAIT)
		t->declines = declines;
	wrote(t, f, "write", off, data, len,
	      pwritev2(f->f.fd, iov, 2, off, flags[op->way]));
}

/* An operation of its own, since it is slow. */
static void op_dsync(struct twin *t, const struct op *op)
{
	struct op write = *op;

	write.way = WRITE_DSYNC;
	op_write(t, &write);
}

enum { DIRECT_WRITE, DIRECT_WRITE_MAPPED, DIRECT_READ, DIRECT_READ_MAPPED };

/* Memory on the other side is plain, or the other file's kept mapping. */
static void op_direct(struct twin *t, const struct op *op)
{
	struct twin_file *f = file_of(t, op), *g = other_of(t, op);
	size_t off = op->off & -SECTOR, off2 = op->off2 & -SECTOR;
	size_t len = room(off, (op->len + SECTOR - 1) & -SECTOR);
	size_t mapped = inside(g, off2, len) & -SECTOR;
	const unsigned char *data;

	switch (op->way) {
	case DIRECT_WRITE:
		data = new_data(t, op, off, len);
		wrote(t, f, "direct write", off, data, len,
		      pwrite(f->direct, data, len, off));
		break;
	case DIRECT_WRITE_MAPPED:
		if (!mapped)
			break;
		data = other_data(t, op, off2, mapped);
		wrote(t, f, "direct write from mapping", off, data, mapped,
		      pwrite(f->direct, g->map + off2, mapped, off));
		break;
	case DIRECT_READ:
		may_collide(t);
		compare_read(t, f, "direct read", off, len,
			     pread(f->direct, t->io, len, off));
		break;
	case DIRECT_READ_MAPPED:
		mapped = inside(f, off, mapped) & -SECTOR;
		if (!mapped || t->no_reads_to_map)
			break;
		memcpy(t->data, f->f.want + off, mapped);
		may_collide(t);
		wrote(t, g, "direct read to mapping", off2, t->data, mapped,
		      pread(f->direct, g->map + off2, mapped, off));
		break;
	}
}

/* Bits of the way */
enum { URING_FIXED = 1, URING_DIRECT = 2, URING_READ = 4 };

static ssize_t uring_wait(struct twin *t)
{
	struct io_uring_cqe *cqe;
	int ret = io_uring_submit(&t->ring);
	ssize_t n;

	/* a tick of the watchdog interrupts it */
	if (ret >= 0) {
		do {
			ret = io_uring_wait_cqe(&t->ring, &cqe);
		} while (ret == -EINTR);
	}
	if (ret < 0) {
		/* what was not submitted must not come later */
		faults_end(t);
		io_uring_queue_exit(&t->ring);
		if (ring_begin(t))
			fail(t, "io_uring: cannot begin again");
		errno = -ret;
		return -1;
	}
	n = cqe->res;
	io_uring_cqe_seen(&t->ring, cqe);
	if (n >= 0)
		return n;
	errno = -n;
	return -1;
}

static void op_uring(struct twin *t, const struct op *op)
{
	struct twin_file *f = file_of(t, op);
	bool direct = op->way & URING_DIRECT;
	size_t off = direct ? op->off & -SECTOR : op->off;
	size_t len = direct ? (op->len + SECTOR - 1) & -SECTOR : op->len;
	int fd = direct ? f->direct : f->f.fd;
	struct io_uring_sqe *sqe = io_uring_get_sqe(&t->ring);

	len = room(off, len);
	if (op->way & URING_READ) {
		if (direct)
			may_collide(t);
		if (op->way & URING_FIXED)
			io_uring_prep_read_fixed(sqe, fd, t->io, len, off, 1);
		else
			io_uring_prep_read(sqe, fd, t->io, len, off);
		compare_read(t, f, "io_uring read", off, len, uring_wait(t));
	} else {
		const unsigned char *data = new_data(t, op, off, len);

		if (op->way & URING_FIXED)
			io_uring_prep_write_fixed(sqe, fd, data, len, off, 0);
		else
			io_uring_prep_write(sqe, fd, data, len, off);
		wrote(t, f, "io_uring write", off, data, len, uring_wait(t));
	}
}

/* Bits of the way */
enum { AIO_DIRECT = 1, AIO_READ = 2 };

static ssize_t aio_wait(struct twin *t, struct iocb *cb)
{
	struct io_event event;
	int ret = io_submit(t->aio, 1, &cb);

	/* a tick of the watchdog interrupts it */
	if (ret == 1) {
		do {
			ret = io_getevents(t->aio, 1, 1, &event, NULL);
		} while (ret == -EINTR);
	}
	if (ret == 1 && (long)event.res >= 0)
		return event.res;
	errno = ret == 1 ? -event.res : -ret;
	return -1;
}

static void op_aio(struct twin *t, const struct op *op)
{
	struct twin_file *f = file_of(t, op);
	bool direct = op->way & AIO_DIRECT;
	size_t off = direct ? op->off & -SECTOR : op->off;
	size_t len = direct ? (op->len + SECTOR - 1) & -SECTOR : op->len;
	int fd = direct ? f->direct : f->f.fd;
	struct iocb cb;

	len = room(off, len);
	if (op->way & AIO_READ) {
		if (direct)
			may_collide(t);
		io_prep_pread(&cb, fd, t->io, len, off);
		compare_read(t, f, "aio read", off, len, aio_wait(t, &cb));
	} else {
		const unsigned char *data = new_data(t, op, off, len);

		io_prep_pwrite(&cb, fd, (void *)data, len, off);
		wrote(t, f, "aio write", off, data, len, aio_wait(t, &cb));
	}
}

/* ---- mappings ---- */

/* Stores may end in SIGBUS, but only when something failed on purpose. */
static bool store(struct twin *t, unsigned char *to, const void *data,
		  size_t len)
{
	sigjmp_buf bus_error;
	bool ok = false;

	if (!sigsetjmp(bus_error, 0)) {
		t->bus_error = t->armed ? &bus_error : NULL;
		memcpy(to, data, len);
		ok = true;
	}
	t->bus_error = NULL;
	return ok;
}

/* As stores do, so may loads. */
static bool load(struct twin *t, const unsigned char *from, size_t len)
{
	return store(t, t->io, from, len);
}

enum { STORE_KEPT, STORE_AFTER_LOAD, STORE_FRESH, STORE_POPULATED, STORE_PEER };

static void op_store(struct twin *t, const struct op *op)
{
	struct twin_file *f = file_of(t, op);
	size_t len = inside(f, op->off, op->len);
	const unsigned char *data = new_data(t, op, op->off, len);
	unsigned char *map = f->map;
	bool ok = true;

	if (!len)
		return;
	switch (op->way) {
	case STORE_AFTER_LOAD:
		ok = load(t, map + op->off, len);
		break;
	case STORE_FRESH:
	case STORE_POPULATED:
		map = map_at(t, t->fresh, f->f.fd, PROT_READ | PROT_WRITE,
			     MAP_SHARED);
		if (!map)
			return;
		/* reads them only: a shared mapping is not written ahead */
		if (op->way == STORE_POPULATED)
			madvise(map, page_end(op->off + len),
				MADV_POPULATE_READ);
		break;
	}
	if (op->way == STORE_PEER)
		peer_ask(t, f, PEER_STORE, op->off, len);
	else if (ok)
		ok = store(t, map + op->off, data, len);
	changed(t, f, op->off, data, len, f->f.size, ok);
	if (map == t->fresh)
		unmap_at(map);
}

enum { PRIVATE_KEPT, PRIVATE_FRESH };

static void op_private(struct twin *t, const struct op *op)
{
	struct twin_file *f = file_of(t, op);
	size_t len = inside(f, op->off, op->len), end = op->off + len;
	const unsigned char *data = new_data(t, op, op->off, len);

	if (!len)
		return;
	if (op->way == PRIVATE_FRESH) {
		unsigned char *map = map_at(t, t->fresh, f->f.fd,
					    PROT_READ | PROT_WRITE,
					    MAP_PRIVATE);

		if (map && store(t, map + op->off, data, len) &&
		    memcmp(map + op->off, data, len))
			fail(t, "a private mapping of %c lost a write",
			     name_of(t, f));
		unmap_at(t->fresh);
		return;
	}
	if (!f->own) {
		f->own = map_at(t, f->own_slot, f->f.fd, PROT_READ | PROT_WRITE,
				MAP_PRIVATE);
		if (!f->own)
			return;
	}
	for (size_t i = op->off / PAGE; i <= (end - 1) / PAGE; i++) {
		if (!f->written[i])
			memcpy(f->mine + i * PAGE, f->f.want + i * PAGE, PAGE);
		f->written[i] = true;
	}
	memcpy(f->mine + op->off, data, len);
	if (!store(t, f->own + op->off, data, len))
		own_end(t, f);
}

enum { REMAP_MOVE, REMAP_ANEW, REMAP_PROTECT, REMAP_FILE_PAGES };

static void op_remap(struct twin *t, const struct op *op)
{
	/* parts that could not be joined for want of memory */
	static const int declines[] = { EFAULT, 0 };
	struct twin_file *f = file_of(t, op);
	unsigned char *to = f->slot[f->map == f->slot[0]];

	switch (op->way) {
	case REMAP_MOVE:
		/* one mapping: not parts, locked and not */
		munlock(f->map, MAX_SIZE);
		if (t->faults)
			t->declines = declines;
		if (mremap(f->map, MAX_SIZE, MAX_SIZE,
			   MREMAP_MAYMOVE | MREMAP_FIXED, to) == MAP_FAILED) {
			done(t, "mremap", -1);
			break;
		}
		/* keep the addresses that it left */
		unmap_at(f->map);
		f->map = to;
		break;
	case REMAP_ANEW:
		if (!map_at(t, to, f->f.fd, PROT_READ | PROT_WRITE, MAP_SHARED))
			break;
		unmap_at(f->map);
		f->map = to;
		break;
	case REMAP_PROTECT:
		if (!mprotect(f->map, MAX_SIZE, PROT_READ))
			while (mprotect(f->map, MAX_SIZE,
					PROT_READ | PROT_WRITE))
				faults_end(t);
		break;
	case REMAP_FILE_PAGES:
		munlock(f->map, MAX_SIZE);
		done(t, "remap_file_pages",
		     remap_file_pages(f->map, MAX_SIZE, 0, 0, 0));
		break;
	}
}

static void op_advise(struct twin *t, const struct op *op)
{
	static const int advice[] = {
		MADV_DONTNEED, MADV_PAGEOUT, MADV_COLD, MADV_POPULATE_READ,
		MADV_POPULATE_WRITE, MADV_WILLNEED, MADV_SOFT_OFFLINE,
	};
	/* no memory, busy, locked: as it likes */
	static const int declines[] = {
		ENOMEM, EAGAIN, EINVAL, EFAULT, EBUSY, EIO, 0
	};
	struct twin_file *f = file_of(t, op);
	size_t from = op->off & -PAGE, len = inside(f, op->off, op->len);

	if (!len)
		return;
	len = page_end(op->off + len) - from;
	/* does not give the memory back */
	if (advice[op->way] == MADV_SOFT_OFFLINE)
		len = PAGE;
	t->declines = declines;
	done(t, "madvise", madvise(f->map + from, len, advice[op->way]));
}

static void op_remove(struct twin *t, const struct op *op)
{
	static const int declines[] = { EOPNOTSUPP, 0 };
	struct twin_file *f = file_of(t, op);
	size_t from = op->off & -PAGE, len = inside(f, op->off, op->len);
	bool ok;

	if (!len)
		return;
	len = page_end(op->off + len) - from;
	/* it does not take what is locked, and stops there */
	munlock(f->map, MAX_SIZE);
	t->declines = declines;
	ok = done(t, "madvise", madvise(f->map + from, len, MADV_REMOVE));
	changed(t, f, from, NULL, inside(f, from, len), f->f.size, ok);
}

enum { PROTECT, PROTECT_NOT };

static int unprotect(struct twin *t, struct twin_file *f)
{
	struct uffdio_range all = { (uintptr_t)f->map, MAX_SIZE };

	/* EINVAL: it is not registered. */
	return ioctl(t->uffd, UFFDIO_UNREGISTER, &all) && errno != EINVAL ? -1 :
									    0;
}

/*
 * Writes through the kept mapping are watched; they do not wait.  Linux 6.12
 * faults for ever where a mapping is locked, too, and the page was dropped from
 * the cache: so a mapping is the one or the other.
 */
static void op_protect(struct twin *t, const struct op *op)
{
	struct twin_file *f = file_of(t, op);
	size_t from = op->off & -PAGE, len = inside(f, op->off, op->len);
	struct uffdio_register reg = {
		.range = { (uintptr_t)f->map, MAX_SIZE },
		.mode = UFFDIO_REGISTER_MODE_WP,
	};
	struct uffdio_writeprotect wp = {
		.range = { (uintptr_t)f->map + from,
			   page_end(op->off + len) - from },
		.mode = op->way == PROTECT ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	if (!len || !done(t, "munlock", munlock(f->map, MAX_SIZE)))
		return;
	if (done(t, "register", ioctl(t->uffd, UFFDIO_REGISTER, &reg)))
		done(t, "protect", ioctl(t->uffd, UFFDIO_WRITEPROTECT, &wp));
}

enum { PIN, PIN_FAST, PIN_CHECK, PIN_END };

/* Pages are held to be read, as long as other operations go on. */
static void op_pin(struct twin *t, const struct op *op)
{
	struct twin_file *f = file_of(t, op);
	size_t from = op->off & -PAGE, len = inside(f, op->off, op->len);
	struct pin_longterm_test pin = {
		.addr = (uintptr_t)f->map + from,
		.size = page_end(op->off + len) - from,
		.flags = op->way == PIN_FAST ? PIN_LONGTERM_TEST_FLAG_USE_FAST :
					       0,
	};
	__u64 to = (uintptr_t)t->io;

	switch (op->way) {
	case PIN_CHECK:
		f = t->pinned;
		if (!f)
			return;
		if (done(t, "read of a pin",
			 ioctl(t->gup, PIN_LONGTERM_TEST_READ, &to)))
			compare(t, f, "pin", t->io, t->pin_off,
				inside(f, t->pin_off, t->pin_len));
		return;
	case PIN_END:
		pin_end(t);
		return;
	}
	if (!len)
		return;
	pin_end(t);
	if (!done(t, "pin", ioctl(t->gup, PIN_LONGTERM_TEST_START, &pin)))
		return;
	t->pinned = f;
	t->pin_off = from;
	t->pin_len = pin.size;
}

enum { LOCK, LOCK_ON_FAULT, UNLOCK };

static void op_lock(struct twin *t, const struct op *op)
{
	struct twin_file *f = file_of(t, op);
	size_t from = op->off & -PAGE, len = inside(f, op->off, op->len);
	int ret;

	if (!len || !done(t, "unregister", unprotect(t, f)))
		return;
	len = page_end(op->off + len) - from;
	switch (op->way) {
	case LOCK:
		ret = mlock(f->map + from, len);
		break;
	case LOCK_ON_FAULT:
		ret = mlock2(f->map + from, len, MLOCK_ONFAULT);
		break;
	default:
		/* all: what is locked is not merged */
		ret = munlock(f->map, MAX_SIZE);
		break;
	}
	done(t, "mlock", ret);
}

enum { FORK_CHECK, FORK_STORE };

/* The child's page tables start empty, but for what is private. */
static void op_fork(struct twin *t, const struct op *op)
{
	struct twin_file *f = file_of(t, op);
	size_t len = inside(f, op->off, op->len);
	const unsigned char *data = new_data(t, op, op->off, len);
	int status;
	pid_t pid;

	if (!len)
		return;
	pid = fork();
	if (!done(t, "fork", pid))
		return;
	if (!pid) {
		me = NULL;
		if (memcmp(f->map + op->off, f->f.want + op->off, len))
			_exit(1);
		if (op->way == FORK_STORE)
			memcpy(f->map + op->off, data, len);
		_exit(0);
	}
	while (waitpid(pid, &status, 0) < 0)
		;
	if (status)
		fail(t, "file %c by a child: status 0x%x", name_of(t, f),
		     status);
	if (op->way == FORK_STORE)
		changed(t, f, op->off, data, len, f->f.size, true);
}

enum { POKE_SELF, POKE_PEER, POKE_MEM };

/* Memory of a process is written from outside. */
static void op_poke(struct twin *t, const struct op *op)
{
	struct twin_file *f = file_of(t, op);
	size_t len = inside(f, op->off, op->len);
	const unsigned char *data = new_data(t, op, op->off, len);
	struct iovec from = { (void *)data, len };
	struct iovec to = { f->map + op->off, len };
	ssize_t n;
	int fd;

	if (!len || t->no_pokes)
		return;
	switch (op->way) {
	case POKE_SELF:
		n = process_vm_writev(getpid(), &from, 1, &to, 1, 0);
		break;
	case POKE_PEER:
		to.iov_base = f->slot[0] + op->off;
		n = process_vm_writev(t->peer.pid, &from, 1, &to, 1, 0);
		break;
	default:
		fd = open("/proc/thread-self/mem", O_RDWR);
		if (!done(t, "open", fd))
			return;
		n = pwrite(fd, data, len, (uintptr_t)to.iov_base);
		close(fd);
		break;
	}
	wrote(t, f, "poke", op->off, data, len, n);
}

/* ---- pipes ---- */

/* Move @len bytes from @from into the file: as many as were moved. */
static ssize_t splice_in(struct twin_file *f, int from, size_t off, size_t len)
{
	loff_t pos = off;
	size_t moved = 0;

	while (moved < len) {
		ssize_t n = splice(from, NULL, f->f.fd, &pos, len - moved, 0);

		if (n <= 0)
			return moved ?: n;
		moved += n;
	}
	return moved;
}

/* Pages of the other file, not copies of them, go into the pipe. */
static ssize_t splice_out(struct twin_file *g, int to, size_t off, size_t len)
{
	loff_t pos = off;
	size_t moved = 0;

	while (moved < len) {
		ssize_t n = splice(g->f.fd, &pos, to, NULL, len - moved,
				   SPLICE_F_NONBLOCK);

		if (n <= 0)
			return moved ?: n;
		moved += n;
	}
	return moved;
}

static void drain(struct twin *t, int fd)
{
	int flags = fcntl(fd, F_GETFL);

	fcntl(fd, F_SETFL, flags | O_NONBLOCK);
	while (read(fd, t->io, MAX_SIZE) > 0)
		;
	fcntl(fd, F_SETFL, flags);
}

enum {
	SPLICE_FILE, SPLICE_BYTES, SPLICE_TEE, SPLICE_USER, SPLICE_MAPPED,
	SPLICE_SENDFILE, SPLICE_HOLD,
};

static void op_splice(struct twin *t, const struct op *op)
{
	struct twin_file *f = file_of(t, op), *g = other_of(t, op);
	bool from_other = op->way == SPLICE_FILE || op->way == SPLICE_TEE ||
			  op->way == SPLICE_MAPPED ||
			  op->way == SPLICE_SENDFILE;
	size_t len = room(op->off, op->len), off2 = op->off2, pos = off2;
	const unsigned char *data;
	int from = t->pipe[0];
	struct iovec iov;
	ssize_t n;

	if (op->way == SPLICE_HOLD) {
		/* these pages have one more reference for a while */
		drain(t, t->held[0]);
		splice_out(f, t->held[1], op->off,
			   inside(f, op->off, op->len));
		return;
	}
	if (from_other)
		len = inside(g, off2, len);
	if (!len)
		return;
	data = from_other ? other_data(t, op, off2, len) :
			    new_data(t, op, op->off, len);
	iov.iov_base = op->way == SPLICE_MAPPED ? g->map + off2 : (void *)data;
	iov.iov_len = len;

	switch (op->way) {
	case SPLICE_FILE:
	case SPLICE_TEE:
		n = splice_out(g, t->pipe[1], off2, len);
		break;
	case SPLICE_BYTES:
		n = write(t->pipe[1], data, len);
		break;
	case SPLICE_USER:
	case SPLICE_MAPPED:
		n = vmsplice(t->pipe[1], &iov, 1, SPLICE_F_NONBLOCK);
		break;
	default:
		if (lseek(f->f.fd, op->off, SEEK_SET) < 0)
			fail(t, "lseek: %s", strerror(errno));
		n = sendfile(f->f.fd, g->f.fd, (off_t *)&pos, len);
		wrote(t, f, "sendfile", op->off, data, len, n);
		return;
	}
	if (n > 0 && op->way == SPLICE_TEE) {
		n = tee(t->pipe[0], t->tee[1], n, SPLICE_F_NONBLOCK);
		from = t->tee[0];
	}
	if (n > 0)
		n = splice_in(f, from, op->off, n);
	wrote(t, f, "splice", op->off, data, len, n);
	drain(t, t->pipe[0]);
	drain(t, t->tee[0]);
}

/* ---- ranges ---- */

enum { COPY_RANGE, COPY_CLONE, COPY_CLONE_RANGE, COPY_DEDUPE };

static const int clone_declines[] = { EOPNOTSUPP, EINVAL, 0 };

/* The file system may say that the ranges are the same only if they are. */
static void dedupe(struct twin *t, const struct op *op, size_t off, size_t off2,
		   size_t len)
{
	struct twin_file *f = file_of(t, op), *g = other_of(t, op);
	struct {
		struct file_dedupe_range head;
		struct file_dedupe_range_info info;
	} arg = {
		.head = { .src_offset = off2, .src_length = len,
			  .dest_count = 1 },
		.info = { .dest_fd = f->f.fd, .dest_offset = off },
	};
	bool same = !memcmp(f->f.want + off, g->f.want + off2, len);

	t->declines = clone_declines;
	if (!done(t, "dedupe", ioctl(g->f.fd, FIDEDUPERANGE, &arg)))
		return;
	if (arg.info.status < 0) {
		errno = -arg.info.status;
		done(t, "dedupe", -1);
	} else if (same != (arg.info.status == FILE_DEDUPE_RANGE_SAME)) {
		faults_end(t);
		if (!t->injected)
			fail(t, "dedupe of %zu bytes into %c: status %d, expected them %s",
			     len, name_of(t, f), arg.info.status,
			     same ? "equal" : "different");
	}
}

static void op_copy(struct twin *t, const struct op *op)
{
	struct twin_file *f = file_of(t, op), *g = other_of(t, op);
	size_t off = op->off & -PAGE, off2 = op->off2 & -PAGE;
	size_t len = room(off, page_end(op->len)), size;
	struct file_clone_range range = { .src_fd = g->f.fd };
	loff_t from = op->off2, to = op->off;
	const unsigned char *data;
	bool ok;

	len = inside(g, off2, len) & -PAGE;
	switch (op->way) {
	case COPY_RANGE:
		len = inside(g, op->off2, room(op->off, op->len));
		if (!len)
			return;
		data = other_data(t, op, op->off2, len);
		wrote(t, f, "copy_file_range", op->off, data, len,
		      copy_file_range(g->f.fd, &from, f->f.fd, &to, len, 0));
		return;
	case COPY_CLONE:
		off = off2 = 0;
		len = g->f.size;
		break;
	case COPY_DEDUPE:
		len = inside(f, off, len) & -PAGE;
		if (len)
			dedupe(t, op, off, off2, len);
		return;
	}
	if (!len)
		return;
	t->declines = clone_declines;
	size = larger(f->f.size, off + len);
	if (op->way == COPY_CLONE) {
		ok = done(t, "clone", ioctl(f->f.fd, FICLONE, g->f.fd));
	} else {
		range.src_offset = off2;
		range.src_length = len;
		range.dest_offset = off;
		ok = done(t, "clone range",
			  ioctl(f->f.fd, FICLONERANGE, &range));
	}
	changed(t, f, off, other_data(t, op, off2, len), len, size, ok);
}

enum { TRUNCATE_TO, TRUNCATE_CUT, TRUNCATE_GROW };

static void op_truncate(struct twin *t, const struct op *op)
{
	struct twin_file *f = file_of(t, op);
	size_t size = op->off;

	if (op->way == TRUNCATE_CUT)
		size = f->f.size - inside(f, 0, op->len);
	else if (op->way == TRUNCATE_GROW)
		size = f->f.size + room(f->f.size, op->len);
	changed(t, f, size, NULL, 0, size,
		done(t, "ftruncate", ftruncate(f->f.fd, size)));
}

enum {
	FALLOC, FALLOC_KEEP_SIZE, FALLOC_PUNCH, FALLOC_ZERO, FALLOC_ZERO_KEEP,
	FALLOC_COLLAPSE, FALLOC_INSERT,
};

static void op_fallocate(struct twin *t, const struct op *op)
{
	static const int modes[] = {
		[FALLOC_KEEP_SIZE] = FALLOC_FL_KEEP_SIZE,
		[FALLOC_PUNCH] = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		[FALLOC_ZERO] = FALLOC_FL_ZERO_RANGE,
		[FALLOC_ZERO_KEEP] = FALLOC_FL_ZERO_RANGE |
				     FALLOC_FL_KEEP_SIZE,
		[FALLOC_COLLAPSE] = FALLOC_FL_COLLAPSE_RANGE,
		[FALLOC_INSERT] = FALLOC_FL_INSERT_RANGE,
	};
	static const int declines[] = { EOPNOTSUPP, 0 };
	struct twin_file *f = file_of(t, op);
	size_t off = op->off, len = room(off, op->len), size = f->f.size;
	size_t tail;
	bool ok;

	if (op->way == FALLOC_COLLAPSE || op->way == FALLOC_INSERT) {
		off &= -PAGE;
		len = page_end(op->len);
		if (off >= size ||
		    (op->way == FALLOC_COLLAPSE && off + len >= size) ||
		    (op->way == FALLOC_INSERT && size + len > MAX_SIZE))
			return;
	}
	if (!len)
		return;
	t->declines = declines;
	ok = done(t, "fallocate", fallocate(f->f.fd, modes[op->way], off, len));
	switch (op->way) {
	case FALLOC:
		/* nothing but the size */
		changed(t, f, off, NULL, 0, larger(size, off + len), ok);
		break;
	case FALLOC_KEEP_SIZE:
		changed(t, f, off, NULL, 0, size, ok);
		break;
	case FALLOC_PUNCH:
	case FALLOC_ZERO_KEEP:
		changed(t, f, off, NULL, inside(f, off, len), size, ok);
		break;
	case FALLOC_ZERO:
		changed(t, f, off, NULL, len, larger(size, off + len), ok);
		break;
	case FALLOC_COLLAPSE:
		own_end(t, f);
		tail = size - off - len;
		memcpy(t->data, f->f.want + off + len, tail);
		changed(t, f, off, t->data, tail, size - len, ok);
		break;
	case FALLOC_INSERT:
		own_end(t, f);
		memset(t->data, 0, len);
		memcpy(t->data + len, f->f.want + off, size - off);
		changed(t, f, off, t->data, len + size - off, size + len, ok);
		break;
	}
}

/*
 * Empty @f, and write the first @size bytes of t->data in one go: that may take
 * large folios.
 */
static void write_anew(struct twin *t, struct twin_file *f, size_t size)
{
	int fd = open(f->f.path, O_WRONLY | O_TRUNC);

	if (fd < 0)
		fail(t, "%s: %s", f->f.path, strerror(errno));
	close(fd);
	if (t->pinned == f)
		t->pinned = NULL;
	changed(t, f, 0, NULL, 0, 0, true);
	wrote(t, f, "write", 0, t->data, size,
	      pwrite(f->f.fd, t->data, size, 0));
}

enum { REPLACE_CREATE, REPLACE_RENAME, REPLACE_TRUNCATE };

/* Another file takes the name, or what it holds: one like the other file. */
static void op_replace(struct twin *t, const struct op *op)
{
	struct twin_file *f = file_of(t, op), *g = other_of(t, op);
	char path[MAX_PATH + 8];

	faults_end(t);
	memcpy(t->data, g->f.want, g->f.size);
	if (op->way == REPLACE_TRUNCATE) {
		write_anew(t, f, g->f.size);
		return;
	}
	if (op->way == REPLACE_CREATE) {
		file_end(t, f);
		make_file(t, f->f.path, g->f.size);
	} else {
		snprintf(path, sizeof(path), "%s.new", f->f.path);
		make_file(t, path, g->f.size);
		if (rename(path, f->f.path))
			fail(t, "rename: %s", strerror(errno));
		file_end(t, f);
	}
	memcpy(f->f.want, g->f.want, MAX_SIZE);
	f->f.size = g->f.size;
	file_begin(t, f);
}

/*
 * Both files are like the other one, but no page is like any other than its
 * twin: the policy "all" would merge it with that, and split large folios.
 */
static void op_twins(struct twin *t, const struct op *op)
{
	struct twin_file *f = file_of(t, op), *g = other_of(t, op);
	size_t size = g->f.size;

	memcpy(t->data, g->f.want, size);
	for (size_t i = 0; i * PAGE < size; i++) {
		unsigned int number = t->now << 8 | NUMBERED | i;

		memcpy(t->data + i * PAGE, &number, sizeof(number));
	}
	write_anew(t, f, size);
	write_anew(t, g, size);
	write_back(f);
	write_back(g);
	if (t->storm)
		usleep(POLICY_US);
}

/* ---- to the disk, and out of memory ---- */

enum { SYNC_FILE, SYNC_DATA, SYNC_MAP, SYNC_MAP_ASYNC, SYNC_RANGE, SYNC_FS };

static void op_sync(struct twin *t, const struct op *op)
{
	struct twin_file *f = file_of(t, op);
	size_t len = page_end(f->f.size);
	int ret = 0;

	switch (op->way) {
	case SYNC_FILE:
		ret = fsync(f->f.fd);
		break;
	case SYNC_DATA:
		ret = fdatasync(f->f.fd);
		break;
	case SYNC_MAP:
		ret = msync(f->map, len, MS_SYNC);
		break;
	case SYNC_MAP_ASYNC:
		ret = msync(f->map, len, MS_ASYNC);
		break;
	case SYNC_RANGE:
		ret = sync_file_range(f->f.fd, op->off, op->len,
				      SYNC_FILE_RANGE_WRITE);
		break;
	case SYNC_FS:
		ret = syncfs(f->f.fd);
		break;
	}
	done(t, "sync", ret);
}

enum { CACHE_FADVISE, CACHE_READAHEAD, CACHE_DROP, CACHE_DROP_ALL, CACHE_COMPACT };

static void op_cache(struct twin *t, const struct op *op)
{
	struct twin_file *f = file_of(t, op);

	switch (op->way) {
	case CACHE_FADVISE:
		posix_fadvise(f->f.fd, op->off, op->len, POSIX_FADV_DONTNEED);
		break;
	case CACHE_READAHEAD:
		done(t, "readahead", readahead(f->f.fd, op->off, op->len));
		break;
	case CACHE_DROP:
		write_text("/proc/sys/vm/drop_caches", "1");
		break;
	case CACHE_DROP_ALL:
		write_text("/proc/sys/vm/drop_caches", "3");
		break;
	case CACHE_COMPACT:
		write_text("/proc/sys/vm/compact_memory", "1");
		break;
	}
}

/* ---- merging ---- */

/* Clean pages, in memory, that nobody has a reference to. */
static void make_mergeable(struct twin *t, struct twin_file *f)
{
	write_back(f);
	pread(f->f.fd, t->io, MAX_SIZE, 0);
	/* empties this processor's batches of pages for the LRU lists */
	madvise(t->io, PAGE, MADV_COLD);
}

static __u64 id_of(struct twin *t, struct twin_file *f)
{
	struct manual_args args = {};
	int ret;

	if (!f->id) {
		ret = find_file(t->_metadata, &f->f, &args);
		/* not known before it has pages in memory */
		if (ret && ret != -ENOENT)
			fail(t, "id of file %c: %d", name_of(t, f), ret);
		f->id = args.id;
	}
	return f->id;
}

/* How many pages in a row, @max at most, are equal as the models say. */
static unsigned int equal_pages(const struct twin_file *f, size_t i,
				const struct twin_file *g, size_t j, size_t max)
{
	unsigned int n = 0;

	while (n < max && !memcmp(f->f.want + (i + n) * PAGE,
				  g->f.want + (j + n) * PAGE, PAGE))
		n++;
	return n;
}

enum {
	MERGE_PAGES, MERGE_RUNS, MERGE_ALL, MERGE_SHIFTED, MERGE_AS_IT_IS,
	MERGE_ANEW, MERGE_TWINS,
};

/*
 * A large folio is merged whole if all of it is asked for at once, and has a
 * twin; else it is split.
 */
static void op_merge(struct twin *t, const struct op *op)
{
	struct twin_file *f = file_of(t, op), *g = other_of(t, op);
	size_t i = op->off / PAGE, j = i;
	size_t end = page_end(room(op->off, op->len) + op->off) / PAGE;
	struct manual_args args = {};
	unsigned int n;

	if (op->way == MERGE_ANEW) {
		/* the other may be in large folios that are shared already */
		memcpy(t->data, g->f.want, g->f.size);
		write_anew(t, f, g->f.size);
	} else if (op->way == MERGE_TWINS) {
		op_twins(t, op);
	}
	if (op->way != MERGE_AS_IT_IS) {
		make_mergeable(t, f);
		make_mergeable(t, g);
	}
	if (control)
		return;
	if (op->way == MERGE_SHIFTED) {
		j = op->off2 / PAGE;
	} else if (op->way == MERGE_ALL || op->way >= MERGE_ANEW) {
		i = j = 0;
		end = MAX_PAGES;
	}
	args.dst = id_of(t, g);
	args.src = id_of(t, f);
	if (!args.dst || !args.src)
		return;
	faults_begin(t, op->nth, false);
	for (; i < end && j < MAX_PAGES; i += n, j += n) {
		int ret;

		args.dst_index = j;
		args.src_index = i;
		args.nr = op->way == MERGE_PAGES ? 1 :
						   MIN(end - i, MAX_PAGES - j);
		/* mostly ask for what has a chance; the kernel compares, too */
		if (op->way != MERGE_AS_IT_IS)
			args.nr = equal_pages(f, i, g, j, args.nr);
		n = 1;
		if (!args.nr)
			continue;
		ret = manual_call(manual->progs.manual_merge, &args);
		if (ret > 0) {
			t->merged += ret;
			n = ret;
		} else if (ret == -ECANCELED || ret == -EINVAL ||
			   ret == -EXDEV || ret == -EPERM) {
			fail(t, "merge: %s", strerror(-ret));
		}
	}
}

static void op_unmerge(struct twin *t, const struct op *op)
{
	struct twin_file *f = file_of(t, op);
	struct manual_args args = {
		.dst_index = op->off / PAGE,
		.nr = 1 + op->len / PAGE,
	};

	if (control)
		return;
	args.dst = id_of(t, f);
	if (!args.dst)
		return;
	faults_begin(t, op->nth, false);
	manual_call(manual->progs.manual_unmerge, &args);
}

/* ---- checks ---- */

enum {
	CHECK_READ, CHECK_NOWAIT, CHECK_MAP, CHECK_FRESH, CHECK_PEER,
	CHECK_PRIVATE, CHECK_SPLICE, CHECK_VMSPLICE, CHECK_REMOTE, CHECK_SELF,
	CHECK_DEVICE, CHECK_DIRECT,
};

static void check_private(struct twin *t, const struct twin_file *f, size_t off,
			  size_t len)
{
	for (size_t n; len; off += n, len -= n) {
		n = PAGE - off % PAGE;
		if (n > len)
			n = len;
		if (!f->written[off / PAGE])
			compare(t, f, "private mapping", f->own + off, off, n);
		else if (memcmp(f->own + off, f->mine + off, n))
			fail(t, "file %c: page %zu that was written through a private mapping changed",
			     name_of(t, f), off / PAGE);
	}
}

/* A device with page tables of its own, which follow those of this process */
static void check_device(struct twin *t, struct twin_file *f, size_t off,
			 size_t len)
{
	static const int declines[] = { EBUSY, 0 };
	size_t from = off & -PAGE;
	struct hmm_dmirror_cmd cmd = {
		.addr = (uintptr_t)f->map + from,
		.ptr = (uintptr_t)t->io,
		.npages = page_end(off + len - from) / PAGE,
	};

	/* when others change page tables all the time */
	if (t->storm)
		t->declines = declines;
	if (done(t, "read by a device",
		 ioctl(t->device, HMM_DMIRROR_READ, &cmd)))
		compare(t, f, "device", t->io, from, cmd.npages * PAGE);
}

static void check(struct twin *t, struct twin_file *f, int way, size_t off,
		  size_t len)
{
	/* a mapping shows zeros up to the end of the page */
	size_t mapped = page_end(off + len) - off;
	struct iovec iov = { t->io, len }, remote;
	struct answer answer;

	switch (way) {
	case CHECK_READ:
		compare_read(t, f, "read", off, len,
			     pread(f->f.fd, t->io, len, off));
		break;
	case CHECK_NOWAIT: {
		static const int declines[] = { EAGAIN, EOPNOTSUPP, 0 };
		ssize_t n;

		t->declines = declines;
		n = preadv2(f->f.fd, &iov, 1, off, RWF_NOWAIT);
		if (done(t, "read", n))
			compare(t, f, "read without waiting", t->io, off, n);
		break;
	}
	case CHECK_MAP:
		if (load(t, f->map + off, mapped))
			compare(t, f, "kept mapping", t->io, off, mapped);
		break;
	case CHECK_FRESH:
		if (!map_at(t, t->fresh, f->f.fd, PROT_READ, MAP_SHARED))
			break;
		if (load(t, t->fresh + off, mapped))
			compare(t, f, "new mapping", t->io, off, mapped);
		unmap_at(t->fresh);
		break;
	case CHECK_PEER:
		answer = peer_ask(t, f, PEER_CHECK, off, mapped);
		if (answer.bad < mapped)
			fail(t, "file %c by another process: offset 0x%zx (size 0x%zx): got %02x, expected %02x",
			     name_of(t, f), off + answer.bad, f->f.size,
			     answer.got, f->f.want[off + answer.bad]);
		break;
	case CHECK_PRIVATE:
		if (f->own && !t->armed)
			check_private(t, f, off, mapped);
		break;
	case CHECK_SPLICE: {
		ssize_t n = splice_out(f, t->pipe[1], off, len);

		if (n > 0)
			n = read(t->pipe[0], t->io, n);
		compare_read(t, f, "splice", off, len, n);
		break;
	}
	case CHECK_VMSPLICE: {
		struct iovec pages = { f->map + off, len };
		ssize_t n = vmsplice(t->pipe[1], &pages, 1, SPLICE_F_NONBLOCK);

		if (n > 0)
			n = read(t->pipe[0], t->io, n);
		compare_read(t, f, "vmsplice", off, len, n);
		break;
	}
	case CHECK_REMOTE:
	case CHECK_SELF:
		remote.iov_base = (way == CHECK_SELF ? f->map : f->slot[0]) +
				  off;
		remote.iov_len = len;
		compare_read(t, f, "process_vm_readv", off, len,
			     process_vm_readv(way == CHECK_SELF ? getpid() :
								  t->peer.pid,
					      &iov, 1, &remote, 1, 0));
		break;
	case CHECK_DEVICE:
		check_device(t, f, off, len);
		break;
	case CHECK_DIRECT:
		/* writes what is dirty first */
		may_collide(t);
		off &= -SECTOR;
		len = room(off, (len + 2 * SECTOR) & -SECTOR);
		compare_read(t, f, "direct read", off, len,
			     pread(f->direct, t->io, len, off));
		break;
	}
}

static void op_check(struct twin *t, const struct op *op)
{
	struct twin_file *f = file_of(t, op);
	size_t len = inside(f, op->off, op->len);

	if (len)
		check(t, f, op->way, op->off, len);
}

static void check_files(struct twin *t, int way)
{
	for (int i = 0; i < NFILES; i++) {
		struct twin_file *f = &t->files[i];

		if (f->f.size)
			check(t, f, way, 0, f->f.size);
	}
}

static void op_check_all(struct twin *t, const struct op *op)
{
	check_files(t, op->way);
}

/* ---- the table ---- */

#define MAX_WAYS 12

/*
 * Allocations may fail on purpose all the time.  File systems do not undo what
 * they had done of cutting, cloning and the like, and complain.
 */
#define MAY_FAIL	1
/* So may requests to the disk */
#define MAY_FAIL_IO	2
/* Changes a file: likely to be followed by a check */
#define CHANGES		4
/* Only where the sequence merges by itself; allocations may fail in the verbs */
#define MERGES		8
/* Only where there is one thread */
#define ALONE		16
/* Takes pages out of the file, pinned ones as well */
#define REMOVES		32
/* Only for the one thread that has the pins */
#define PINS		64

static const struct operation {
	const char *name;
	void (*run)(struct twin *t, const struct op *op);
	unsigned int weight;
	unsigned int flags;
	const char *ways[MAX_WAYS];
} ops[] = {
	{ "write", op_write, 14, MAY_FAIL | CHANGES,
	  { "plain", "two", "append", "nowait", "twin" } },
	{ "dsync", op_dsync, 1, CHANGES, { "write" } },
	{ "direct", op_direct, 6, MAY_FAIL | MAY_FAIL_IO | REMOVES | CHANGES,
	  { "write", "write-mapped", "read", "read-mapped" } },
	{ "uring", op_uring, 6, MAY_FAIL | MAY_FAIL_IO | REMOVES | CHANGES,
	  { "write", "write-fixed", "write-direct", "write-direct-fixed",
	    "read", "read-fixed", "read-direct", "read-direct-fixed" } },
	{ "aio", op_aio, 4, MAY_FAIL | MAY_FAIL_IO | REMOVES | CHANGES,
	  { "write", "write-direct", "read", "read-direct" } },
	{ "store", op_store, 14, MAY_FAIL | CHANGES,
	  { "kept", "after-load", "fresh", "populated", "peer" } },
	{ "private", op_private, 4, MAY_FAIL | CHANGES, { "kept", "fresh" } },
	{ "remap", op_remap, 2, 0, { "move", "anew", "protect", "file-pages" } },
	{ "advise", op_advise, 6, MAY_FAIL,
	  { "dontneed", "pageout", "cold", "populate-read", "populate-write",
	    "willneed", "soft-offline" } },
	{ "remove", op_remove, 1, REMOVES | CHANGES, { "range" } },
	{ "lock", op_lock, 2, MAY_FAIL, { "all", "on-fault", "unlock" } },
	{ "protect", op_protect, 2, MAY_FAIL | ALONE, { "on", "off" } },
	{ "pin", op_pin, 4, MAY_FAIL | PINS,
	  { "hold", "hold-fast", "check", "end" } },
	{ "fork", op_fork, 1, CHANGES, { "check", "store" } },
	{ "poke", op_poke, 3, MAY_FAIL | CHANGES, { "self", "peer", "mem" } },
	{ "splice", op_splice, 6, MAY_FAIL | CHANGES,
	  { "file", "bytes", "tee", "user", "mapped", "sendfile", "hold" } },
	{ "copy", op_copy, 6, REMOVES | CHANGES,
	  { "range", "clone", "clone-range", "dedupe" } },
	{ "truncate", op_truncate, 3, REMOVES | CHANGES, { "to", "cut", "grow" } },
	{ "fallocate", op_fallocate, 6, REMOVES | CHANGES,
	  { "plain", "keep-size", "punch", "zero", "zero-keep", "collapse",
	    "insert" } },
	{ "replace", op_replace, 2, REMOVES | CHANGES,
	  { "create", "rename", "truncate" } },
	{ "twins", op_twins, 2, REMOVES | CHANGES, { "numbered" } },
	{ "sync", op_sync, 1, 0,
	  { "fsync", "fdatasync", "msync", "msync-async", "range", "fs" } },
	{ "cache", op_cache, 4, 0,
	  { "fadvise", "readahead", "drop", "drop-all", "compact" } },
	{ "merge", op_merge, 21, MERGES,
	  { "pages", "runs", "all", "shifted", "as-it-is", "anew", "twins" } },
	{ "unmerge", op_unmerge, 1, MERGES, { "range" } },
	{ "check", op_check, 10, MAY_FAIL | MAY_FAIL_IO,
	  { "read", "nowait", "map", "fresh", "peer", "private", "splice",
	    "vmsplice", "remote", "self", "device", "direct" } },
	{ "check-all", op_check_all, 1, 0,
	  { "read", "nowait", "map", "fresh", "peer" } },
};

/* Indexes of those that the generator names */
#define CODE_CHECK (ARRAY_SIZE(ops) - 2)

#endif /* TWIN_OPS_H */
