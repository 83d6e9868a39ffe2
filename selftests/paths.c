// SPDX-License-Identifier: GPL-2.0
/*
 * Ways to the pages of a file that take some scaffolding: I/O that is not
 * waited for, loop devices, overlays and others that stand between, and file
 * systems that are frozen, made read-only or full meanwhile.
 */
#include <libaio.h>
#include <liburing.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/quota.h>
#include <sys/uio.h>
#include <linux/falloc.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <linux/fsverity.h>

#include "trio.h"
#include "../../../include/uapi/linux/fuse.h"	/* of the kernel tree */

#define QFMT_VFS_V1 4

/*
 * The file @name below @dir, which has the contents of @like already: another
 * name for it, or a copy.
 */
static void file_open(struct __test_metadata *_metadata, struct file *f,
		      const char *dir, const char *name, int flags,
		      const struct file *like)
{
	ASSERT_GT(MAX_PATH, snprintf(f->path, MAX_PATH, "%s/%s", dir, name));
	f->fd = open(f->path, flags);
	ASSERT_LE(0, f->fd) TH_LOG("%s: %s", f->path, strerror(errno));
	f->size = like->size;
	f->want = malloc(f->size);
	ASSERT_NE(NULL, f->want);
	memcpy(f->want, like->want, f->size);
}

/* The model is what @fd has to say. */
static void read_model(struct __test_metadata *_metadata, struct file *f,
		       int fd)
{
	unsigned char *buf = page_buffer(_metadata, PAGE);

	for (size_t off = 0; off < f->size; off += PAGE) {
		ssize_t n = pread(fd, buf, PAGE, off);

		ASSERT_LT(0, n) TH_LOG("byte %zu: %s", off, strerror(errno));
		memcpy(f->want + off, buf, n);
	}
	free(buf);
}

/* ---- io_uring ---- */

FIXTURE(uring) {
	struct trio t;
	struct io_uring ring;
};

FIXTURE_SETUP(uring)
{
	int ret = io_uring_queue_init(NPAGES, &self->ring, 0);

	ASSERT_EQ(0, ret) TH_LOG("io_uring: %s", strerror(-ret));
	trio_begin(_metadata, &self->t);
}

FIXTURE_TEARDOWN(uring)
{
	io_uring_queue_exit(&self->ring);
	trio_end(_metadata, &self->t);
}

/* Submit what is prepared, @nr requests of @len bytes each, and wait. */
static void ring_run(struct __test_metadata *_metadata, struct io_uring *ring,
		     unsigned int nr, int len)
{
	struct io_uring_cqe *cqe;

	ASSERT_EQ(nr, io_uring_submit_and_wait(ring, nr));
	for (unsigned int i = 0; i < nr; i++) {
		ASSERT_EQ(0, io_uring_wait_cqe(ring, &cqe));
		EXPECT_EQ(len, cqe->res);
		io_uring_cqe_seen(ring, cqe);
	}
}

/* By this task, and by a worker of the kernel's. */
TEST_F(uring, write)
{
	struct trio *t = &self->t;
	struct io_uring_sqe *sqe;
	unsigned char *map;

	map = map_a(_metadata, t, PROT_READ | PROT_WRITE, MAP_SHARED);
	io_uring_prep_write(io_uring_get_sqe(&self->ring), t->a.fd, t->junk,
			    PAGE, HIT * PAGE + 100);
	ring_run(_metadata, &self->ring, 1, PAGE);
	model_write(_metadata, &t->a, HIT * PAGE + 100, t->junk, PAGE);
	check_map(&t->a, map);
	sqe = io_uring_get_sqe(&self->ring);
	io_uring_prep_write(sqe, t->a.fd, t->junk, 10, (HIT + 2) * PAGE);
	io_uring_sqe_set_flags(sqe, IOSQE_ASYNC);
	ring_run(_metadata, &self->ring, 1, 10);
	model_write(_metadata, &t->a, (HIT + 2) * PAGE, t->junk, 10);
	check_map(&t->a, map);
	check_broken(t, HIT, HIT + 3);
	file_unmap(&t->a, map);
}

/* Several at once, which end in any order. */
TEST_F(uring, direct_write)
{
	struct trio *t = &self->t;
	int fd = open(t->a.path, O_RDWR | O_DIRECT);
	unsigned char *map;

	ASSERT_LE(0, fd);
	map = map_a(_metadata, t, PROT_READ | PROT_WRITE, MAP_SHARED);
	for (size_t i = HIT; i < HIT + 4; i++)
		io_uring_prep_write(io_uring_get_sqe(&self->ring), fd,
				    t->junk + i * PAGE, PAGE, i * PAGE);
	ring_run(_metadata, &self->ring, 4, PAGE);
	model_write(_metadata, &t->a, HIT * PAGE, t->junk + HIT * PAGE,
		    4 * PAGE);
	check_map(&t->a, map);
	check_broken(t, HIT, HIT + 4);
	file_unmap(&t->a, map);
	close(fd);
}

/* Buffered and direct, out of memory that is pinned beforehand. */
TEST_F(uring, fixed_buffer)
{
	struct trio *t = &self->t;
	struct iovec iov = { t->junk, NPAGES * PAGE };
	int fd = open(t->a.path, O_RDWR | O_DIRECT);

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, io_uring_register_buffers(&self->ring, &iov, 1));
	io_uring_prep_write_fixed(io_uring_get_sqe(&self->ring), t->a.fd,
				  t->junk + 10, PAGE, HIT * PAGE, 0);
	ring_run(_metadata, &self->ring, 1, PAGE);
	io_uring_prep_write_fixed(io_uring_get_sqe(&self->ring), fd,
				  t->junk + PAGE, PAGE, (HIT + 1) * PAGE, 0);
	ring_run(_metadata, &self->ring, 1, PAGE);
	model_write(_metadata, &t->a, HIT * PAGE, t->junk + 10, PAGE);
	model_write(_metadata, &t->a, (HIT + 1) * PAGE, t->junk + PAGE, PAGE);
	check_broken(t, HIT, HIT + 2);
	close(fd);
}

/*
 * Fixed buffers are pinned for long and for writing: a shared mapping is
 * refused, of a private one the pages become copies.
 */
TEST_F(uring, fixed_buffer_of_mapping)
{
	struct trio *t = &self->t;
	struct iovec iov = { .iov_len = NPAGES * PAGE };
	unsigned char *shared, *private;
	struct file d;
	int fd;

	shared = map_a(_metadata, t, PROT_READ | PROT_WRITE, MAP_SHARED);
	iov.iov_base = shared;
	EXPECT_EQ(-EFAULT, io_uring_register_buffers(&self->ring, &iov, 1));
	check_broken(t, 0, 0);

	file_create(_metadata, &d, t->dir, "d", 2 * PAGE, 5);
	fd = open(d.path, O_RDWR | O_DIRECT);
	ASSERT_LE(0, fd);
	private = file_map(_metadata, &t->a, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE);
	touch(private, SIZE);
	iov.iov_base = private;
	ASSERT_EQ(0, io_uring_register_buffers(&self->ring, &iov, 1));
	check_broken(t, 0, 0);

	/* Not seen there: what is written to the file. */
	ASSERT_EQ(PAGE, pwrite(t->a.fd, t->junk, PAGE, HIT * PAGE));
	io_uring_prep_write_fixed(io_uring_get_sqe(&self->ring), fd,
				  private + HIT * PAGE, PAGE, PAGE, 0);
	ring_run(_metadata, &self->ring, 1, PAGE);
	model_write(_metadata, &d, PAGE, t->a.want + HIT * PAGE, PAGE);
	model_write(_metadata, &t->a, HIT * PAGE, t->junk, PAGE);
	check_file(&d);
	check_disk(&d);

	/* Nor in any file: what is read to it. */
	io_uring_prep_read_fixed(io_uring_get_sqe(&self->ring), fd,
				 private + 4 * PAGE, PAGE, 0, 0);
	ring_run(_metadata, &self->ring, 1, PAGE);
	EXPECT_EQ(0, memcmp(private + 4 * PAGE, d.want, PAGE));
	check_map(&t->a, shared);
	check_broken(t, HIT, HIT + 1);
	ASSERT_EQ(0, io_uring_unregister_buffers(&self->ring));
	file_unmap(&t->a, shared);
	file_unmap(&t->a, private);
	close(fd);
	file_close(&d);
}

/* The device writes to mapped pages of A, and reads from others. */
TEST_F(uring, mapping)
{
	struct trio *t = &self->t;
	unsigned char *map;
	struct file d;
	int fd;

	file_create(_metadata, &d, t->dir, "d", 4 * PAGE, 5);
	fd = open(d.path, O_RDWR | O_DIRECT);
	ASSERT_LE(0, fd);
	map = map_a(_metadata, t, PROT_READ | PROT_WRITE, MAP_SHARED);
	for (size_t i = 0; i < 2; i++)
		io_uring_prep_read(io_uring_get_sqe(&self->ring), fd,
				   map + (HIT + i) * PAGE, PAGE, i * PAGE);
	for (size_t i = 2; i < 4; i++)
		io_uring_prep_write(io_uring_get_sqe(&self->ring), fd,
				    map + (HIT + i) * PAGE, PAGE, i * PAGE);
	ring_run(_metadata, &self->ring, 4, PAGE);
	model_write(_metadata, &t->a, HIT * PAGE, d.want, 2 * PAGE);
	model_write(_metadata, &d, 2 * PAGE, t->b.want + (HIT + 2) * PAGE,
		    2 * PAGE);
	check_map(&t->a, map);
	check_file(&d);
	check_disk(&d);
	check_broken(t, HIT, HIT + 2);
	file_unmap(&t->a, map);
	close(fd);
	file_close(&d);
}

/* ---- AIO ---- */

FIXTURE(aio) {
	struct trio t;
	io_context_t queue;
};

FIXTURE_SETUP(aio)
{
	ASSERT_EQ(0, io_setup(NPAGES, &self->queue));
	trio_begin(_metadata, &self->t);
}

FIXTURE_TEARDOWN(aio)
{
	io_destroy(self->queue);
	trio_end(_metadata, &self->t);
}

static void aio_run(struct __test_metadata *_metadata, io_context_t queue,
		    struct iocb *cbs, long nr)
{
	struct io_event events[nr];
	struct iocb *list[nr];

	for (long i = 0; i < nr; i++)
		list[i] = &cbs[i];
	ASSERT_EQ(nr, io_submit(queue, nr, list));
	ASSERT_EQ(nr, io_getevents(queue, nr, nr, events, NULL));
	for (long i = 0; i < nr; i++) {
		EXPECT_EQ(PAGE, events[i].res);
	}
}

static void three_writes(struct __test_metadata *_metadata,
			 io_context_t queue, struct trio *t, int fd)
{
	struct iocb cbs[3];
	unsigned char *map;

	map = map_a(_metadata, t, PROT_READ | PROT_WRITE, MAP_SHARED);
	for (size_t i = 0; i < 3; i++)
		io_prep_pwrite(&cbs[i], fd, t->junk + i * PAGE, PAGE,
			       (HIT + i) * PAGE);
	aio_run(_metadata, queue, cbs, 3);
	model_write(_metadata, &t->a, HIT * PAGE, t->junk, 3 * PAGE);
	check_map(&t->a, map);
	check_broken(t, HIT, HIT + 3);
	file_unmap(&t->a, map);
}

TEST_F(aio, write)
{
	three_writes(_metadata, self->queue, &self->t, self->t.a.fd);
}

TEST_F(aio, direct_write)
{
	int fd = open(self->t.a.path, O_RDWR | O_DIRECT);

	ASSERT_LE(0, fd);
	three_writes(_metadata, self->queue, &self->t, fd);
	close(fd);
}

/* The device writes to mapped pages of A. */
TEST_F(aio, mapping)
{
	struct trio *t = &self->t;
	struct iocb cbs[2];
	unsigned char *map;
	struct file d;
	int fd;

	file_create(_metadata, &d, t->dir, "d", 2 * PAGE, 5);
	fd = open(d.path, O_RDONLY | O_DIRECT);
	ASSERT_LE(0, fd);
	map = map_a(_metadata, t, PROT_READ | PROT_WRITE, MAP_SHARED);
	for (size_t i = 0; i < 2; i++)
		io_prep_pread(&cbs[i], fd, map + (HIT + i) * PAGE, PAGE,
			      i * PAGE);
	aio_run(_metadata, self->queue, cbs, 2);
	model_write(_metadata, &t->a, HIT * PAGE, d.want, 2 * PAGE);
	check_map(&t->a, map);
	check_broken(t, HIT, HIT + 2);
	file_unmap(&t->a, map);
	close(fd);
	file_close(&d);
}

/* ---- overlayfs ---- */

/* A, B and C are in the lower directory. */
FIXTURE(overlay) {
	struct trio t;
	char top[MAX_PATH];
	char upper[MAX_PATH];
	char mnt[MAX_PATH];
	struct file file;		/* A, as seen through the overlay */
	bool mounted;
};

FIXTURE_VARIANT(overlay) {
	const char *options;
	bool metacopy;			/* new attributes leave data below */
};

FIXTURE_VARIANT_ADD(overlay, plain) { .options = "" };
FIXTURE_VARIANT_ADD(overlay, metacopy) {
	.options = ",metacopy=on",
	.metacopy = true,
};

FIXTURE_SETUP(overlay)
{
	struct trio *t = &self->t;
	char options[5 * MAX_PATH];
	int flags = 0, fd;

	fd = open(test_top(), O_RDONLY);
	ASSERT_LE(0, fd);
	ioctl(fd, FS_IOC_GETFLAGS, &flags);
	close(fd);
	if (flags & FS_CASEFOLD_FL)
		SKIP(return, "overlayfs takes no casefolded directories");
	trio_begin(_metadata, t);
	ASSERT_GT(MAX_PATH, snprintf(self->top, MAX_PATH, "%s.top", t->dir));
	ASSERT_GT(MAX_PATH, snprintf(self->upper, MAX_PATH, "%s/upper",
				     self->top));
	ASSERT_GT(MAX_PATH, snprintf(self->mnt, MAX_PATH, "%s/mnt", self->top));
	ASSERT_EQ(0, run("mkdir %s %s %s/work %s", self->top, self->upper,
			 self->top, self->mnt));
	snprintf(options, sizeof(options),
		 "lowerdir=%s,upperdir=%s,workdir=%s/work%s", t->dir,
		 self->upper, self->top, variant->options);
	ASSERT_EQ(0, mount("overlay", self->mnt, "overlay", 0, options)) {
		TH_LOG("overlay: %s", strerror(errno));
	}
	self->mounted = true;
}

FIXTURE_TEARDOWN(overlay)
{
	file_close(&self->file);
	if (self->mounted) {
		EXPECT_EQ(0, umount(self->mnt));
	}
	EXPECT_EQ(0, remove_tree(self->top));
	trio_end(_metadata, &self->t);
}

/* Of the lower files no page was touched. */
#define check_lower() check_broken(&self->t, 0, 0)

TEST_F(overlay, lower)
{
	struct trio *t = &self->t;
	struct manual_args args = {};
	unsigned char *map;

	file_open(_metadata, &self->file, self->mnt, "a", O_RDONLY, &t->a);
	map = file_map(_metadata, &self->file, PROT_READ, MAP_SHARED);
	check_map(&self->file, map);
	check_file(&self->file);
	for (size_t i = 0; i < NPAGES; i++)
		EXPECT_SHARED(&self->file, i, &t->b, i);
	check_lower();
	/* What it is made of is known, itself it is not. */
	if (!control) {
		EXPECT_EQ(-ENOENT, find_file(_metadata, &self->file, &args));
	}
	/* And who writes below, as one should not, is seen above. */
	write_a(_metadata, t, HIT * PAGE, t->junk, PAGE);
	model_write(_metadata, &self->file, HIT * PAGE, t->junk, PAGE);
	check_map(&self->file, map);
	check_file(&self->file);
	check_broken(t, HIT, HIT + 1);
	file_unmap(&self->file, map);
}

/* Who opens a file for writing gets a copy of it, made of shared pages. */
TEST_F(overlay, copy_up)
{
	struct trio *t = &self->t;
	struct file *f = &self->file;
	unsigned char *map;

	file_open(_metadata, f, self->mnt, "a", O_RDWR, &t->a);
	check_file(f);
	check_lower();
	ASSERT_EQ(PAGE, pwrite(f->fd, t->junk, PAGE, HIT * PAGE + 5));
	model_write(_metadata, f, HIT * PAGE + 5, t->junk, PAGE);
	map = file_map(_metadata, f, PROT_READ | PROT_WRITE, MAP_SHARED);
	memcpy(map + 5 * PAGE, t->junk, 100);
	model_write(_metadata, f, 5 * PAGE, t->junk, 100);
	check_map(f, map);
	check_file(f);
	check_disk(f);
	file_unmap(f, map);
	check_lower();
}

/* Only what is left is copied up. */
TEST_F(overlay, copy_up_by_truncate)
{
	struct trio *t = &self->t;
	struct file *f = &self->file;
	size_t size = HIT * PAGE + 500;

	file_open(_metadata, f, self->mnt, "a", O_RDONLY, &t->a);
	ASSERT_EQ(0, truncate(f->path, size));
	close(f->fd);
	f->fd = open(f->path, O_RDWR);
	ASSERT_LE(0, f->fd);
	model_resize(_metadata, f, size);
	check_file(f);
	ASSERT_EQ(0, ftruncate(f->fd, SIZE));
	model_resize(_metadata, f, SIZE);
	check_file(f);
	check_lower();
}

TEST_F(overlay, copy_up_of_attributes)
{
	struct trio *t = &self->t;
	struct file *f = &self->file;

	file_open(_metadata, f, self->mnt, "a", O_RDONLY, &t->a);
	ASSERT_EQ(0, chmod(f->path, 0600));
	close(f->fd);
	f->fd = open(f->path, O_RDONLY);
	ASSERT_LE(0, f->fd);
	check_file(f);
	if (variant->metacopy) {
		for (size_t i = 0; i < NPAGES; i++)
			EXPECT_SHARED(f, i, &t->b, i);
	}
	check_lower();
	close(f->fd);
	f->fd = open(f->path, O_RDWR);
	ASSERT_LE(0, f->fd);
	ASSERT_EQ(100, pwrite(f->fd, t->junk, 100, HIT * PAGE + 5));
	model_write(_metadata, f, HIT * PAGE + 5, t->junk, 100);
	check_file(f);
	check_disk(f);
	check_lower();
}

/* The copy's pages are equal to the lower ones: they share, until written. */
TEST_F(overlay, upper)
{
	const int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
	struct trio *t = &self->t;
	struct file *f = &self->file, real;
	unsigned char *map;
	int fd;

	SKIP_IF_LARGE();
	file_open(_metadata, f, self->mnt, "a", O_RDWR, &t->a);
	file_open(_metadata, &real, self->upper, "a", O_RDWR, &t->a);
	ASSERT_EQ(0, fsync(real.fd));
	read_to_cache(_metadata, &real);
	merge_all(&t->b, &real);
	check_totals(4 * NPAGES);
	for (size_t i = 0; i < NPAGES; i++)
		EXPECT_SHARED(f, i, &t->c, i);
	map = file_map(_metadata, f, PROT_READ | PROT_WRITE, MAP_SHARED);
	touch(map, SIZE);

	ASSERT_EQ(100, pwrite(f->fd, t->junk, 100, HIT * PAGE + 50));
	model_write(_metadata, f, HIT * PAGE + 50, t->junk, 100);
	memcpy(map + (HIT + 1) * PAGE, t->junk, 100);
	model_write(_metadata, f, (HIT + 1) * PAGE, t->junk, 100);
	fd = open(f->path, O_RDWR | O_DIRECT);
	ASSERT_LE(0, fd);
	ASSERT_EQ(PAGE, pwrite(fd, t->junk, PAGE, (HIT + 2) * PAGE));
	model_write(_metadata, f, (HIT + 2) * PAGE, t->junk, PAGE);
	close(fd);
	ASSERT_EQ(0, fallocate(f->fd, mode, (HIT + 3) * PAGE + 7, 1000));
	model_zero(f, (HIT + 3) * PAGE + 7, 1000);

	check_map(f, map);
	check_file(f);
	check_disk(f);
	memcpy(real.want, f->want, SIZE);
	check_file(&real);
	check_disk(&real);
	check_totals(4 * NPAGES - 4);
	for (size_t i = 0; i < NPAGES; i++)
		EXPECT_SHARED(&t->a, i, &t->c, i);
	file_unmap(f, map);
	file_close(&real);
	file_close(f);
	/* The upper file goes, and with it what it shares. */
	ASSERT_EQ(0, unlink(f->path));
	sync();
	check_lower();
}

/* ---- FUSE that passes through ---- */

/* A server of one file, the one behind @backing, under every name. */
static void serve(int dev, int backing)
{
	static char buf[128 << 10];
	struct fuse_in_header *in = (void *)buf;
	struct {
		struct fuse_out_header head;
		union {
			struct fuse_init_out init;
			struct fuse_attr_out attr;
			struct fuse_entry_out entry;
			struct fuse_open_out open;
		};
	} out;
	struct fuse_backing_map map = { .fd = backing };
	int id = 0;

	while (read(dev, buf, sizeof(buf)) > 0) {
		struct fuse_attr attr = { .ino = 1, .mode = S_IFDIR | 0755,
					  .nlink = 2 };
		struct stat st;
		size_t len = 0;

		if (in->opcode == FUSE_FORGET ||
		    in->opcode == FUSE_BATCH_FORGET)
			continue;
		memset(&out, 0, sizeof(out));
		out.head.unique = in->unique;
		if (in->nodeid == 2 || in->opcode == FUSE_LOOKUP) {
			fstat(backing, &st);
			attr.ino = 2;
			attr.mode = S_IFREG | 0644;
			attr.nlink = 1;
			attr.size = st.st_size;
			attr.blocks = st.st_blocks;
		}
		switch (in->opcode) {
		case FUSE_INIT:
			out.init.major = FUSE_KERNEL_VERSION;
			out.init.minor = FUSE_KERNEL_MINOR_VERSION;
			out.init.max_write = 64 << 10;
			out.init.flags = FUSE_INIT_EXT;
			out.init.flags2 = FUSE_PASSTHROUGH >> 32;
			out.init.max_stack_depth = 1;
			len = sizeof(out.init);
			break;
		case FUSE_LOOKUP:
			out.entry.nodeid = 2;
			out.entry.attr = attr;
			len = sizeof(out.entry);
			break;
		case FUSE_GETATTR:
			out.attr.attr = attr;
			len = sizeof(out.attr);
			break;
		case FUSE_OPEN:
			/* All who have it open must use the same one. */
			if (!id)
				id = ioctl(dev, FUSE_DEV_IOC_BACKING_OPEN,
					   &map);
			if (id < 0)
				out.head.error = -EIO;
			out.open.open_flags = FOPEN_PASSTHROUGH;
			out.open.backing_id = id;
			len = id < 0 ? 0 : sizeof(out.open);
			break;
		case FUSE_RELEASE:
			break;
		default:
			out.head.error = -ENOSYS;
		}
		out.head.len = sizeof(out.head) + len;
		if (write(dev, &out, out.head.len) < 0 && errno != ENOENT)
			break;
	}
	_exit(0);
}

FIXTURE(fuse) {
	struct trio t;
	char mnt[MAX_PATH];
	struct file file;		/* A, as seen through FUSE */
	pid_t server;
};

FIXTURE_SETUP(fuse)
{
	struct trio *t = &self->t;
	char options[MAX_PATH];
	int dev;

	trio_begin(_metadata, t);
	ASSERT_GT(MAX_PATH, snprintf(self->mnt, MAX_PATH, "%s/mnt", t->dir));
	ASSERT_EQ(0, mkdir(self->mnt, 0755));
	dev = open("/dev/fuse", O_RDWR);
	ASSERT_LE(0, dev) TH_LOG("/dev/fuse: %s", strerror(errno));
	snprintf(options, MAX_PATH,
		 "fd=%d,rootmode=40000,user_id=0,group_id=0", dev);
	ASSERT_EQ(0, mount("ksm_ext", self->mnt, "fuse", 0, options));
	self->server = fork();
	ASSERT_LE(0, self->server);
	if (!self->server) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		serve(dev, t->a.fd);
	}
	close(dev);
	file_open(_metadata, &self->file, self->mnt, "x", O_RDWR, &t->a);
}

FIXTURE_TEARDOWN(fuse)
{
	file_close(&self->file);
	EXPECT_EQ(0, umount(self->mnt));
	/* Without a mount there is nothing to serve. */
	EXPECT_EQ(self->server, waitpid(self->server, NULL, 0));
	trio_end(_metadata, &self->t);
}

TEST_F(fuse, passthrough)
{
	struct trio *t = &self->t;
	struct file *f = &self->file;
	unsigned char *map;

	map = file_map(_metadata, f, PROT_READ | PROT_WRITE, MAP_SHARED);
	check_map(f, map);
	check_file(f);
	for (size_t i = 0; i < NPAGES; i++)
		EXPECT_SHARED(f, i, &t->b, i);
	ASSERT_EQ(PAGE, pwrite(f->fd, t->junk, PAGE, HIT * PAGE + 5));
	model_write(_metadata, f, HIT * PAGE + 5, t->junk, PAGE);
	memcpy(map + (HIT + 2) * PAGE, t->junk, 100);
	model_write(_metadata, f, (HIT + 2) * PAGE, t->junk, 100);
	check_map(f, map);
	check_file(f);
	model_write(_metadata, &t->a, 0, f->want, SIZE);
	check_broken(t, HIT, HIT + 3);
	file_unmap(f, map);
}

/* ---- loop devices ---- */

#define IMAGE_PAGES (2 * NPAGES)

/* An image and its twin share all pages; the image is behind a loop device. */
FIXTURE(loop) {
	char dir[MAX_PATH];
	struct file image, twin;
	char dev[64];
	int fd;
	unsigned char *junk;
};

FIXTURE_VARIANT(loop) {
	const char *direct;
};

FIXTURE_VARIANT_ADD(loop, buffered) { "off" };
FIXTURE_VARIANT_ADD(loop, direct) { "on" };

static void attach(struct __test_metadata *_metadata, const char *image,
		   const char *direct, char *dev, size_t len)
{
	char cmd[2 * MAX_PATH];
	FILE *out;

	snprintf(cmd, sizeof(cmd), "losetup -f --show --direct-io=%s %s",
		 direct, image);
	out = popen(cmd, "r");
	ASSERT_NE(NULL, out);
	EXPECT_NE(NULL, fgets(dev, len, out));
	ASSERT_EQ(0, pclose(out)) TH_LOG("%s", cmd);
	dev[strcspn(dev, "\n")] = 0;
}

/* Whether it is really direct is for the device to say. */
static bool is_direct(const char *dev)
{
	char path[MAX_PATH], text[8];

	snprintf(path, MAX_PATH, "/sys/block/%s/loop/dio", strrchr(dev, '/'));
	return !read_text(path, text, sizeof(text)) && text[0] == '1';
}

FIXTURE_SETUP(loop)
{
	const size_t size = IMAGE_PAGES * PAGE;

	SKIP_IF_LARGE();
	test_begin(_metadata, self->dir);
	self->junk = page_buffer(_metadata, NPAGES * PAGE);
	fill(self->junk, NPAGES * PAGE, 99);
	file_create(_metadata, &self->image, self->dir, "image", size, 1);
	file_create(_metadata, &self->twin, self->dir, "twin", size, 1);
	attach(_metadata, self->image.path, variant->direct, self->dev,
	       sizeof(self->dev));
	EXPECT_EQ(!strcmp(variant->direct, "on"), is_direct(self->dev));
	self->fd = open(self->dev, O_RDWR | O_DIRECT);
	ASSERT_LE(0, self->fd) TH_LOG("%s: %s", self->dev, strerror(errno));
	/* To look for partitions the kernel may have read from it. */
	merge_all(&self->twin, &self->image);
	check_totals(2 * IMAGE_PAGES);
}

FIXTURE_TEARDOWN(loop)
{
	close(self->fd);
	if (self->dev[0]) {
		EXPECT_EQ(0, run("losetup -d %s", self->dev));
	}
	file_close(&self->image);
	file_close(&self->twin);
	free(self->junk);
	test_end(_metadata, self->dir);
}

/* Pages of the image from @first to before @end are its own now. */
static void check_image(struct __test_metadata *_metadata,
			const FIXTURE_DATA(loop) *self, size_t first,
			size_t end)
{
	check_file(&self->image);
	check_disk(&self->image);
	check_file(&self->twin);
	check_disk(&self->twin);
	for (size_t i = 0; i < IMAGE_PAGES; i++) {
		if (i >= first && i < end) {
			EXPECT_APART(&self->image, i, &self->twin, i);
		} else {
			EXPECT_SHARED(&self->image, i, &self->twin, i);
		}
	}
	check_totals(2 * IMAGE_PAGES - (end - first));
}

TEST_F(loop, read)
{
	const size_t len = NPAGES * PAGE;
	unsigned char *buf = page_buffer(_metadata, len);

	for (size_t off = 0; off < self->image.size; off += len) {
		ASSERT_EQ(len, pread(self->fd, buf, len, off));
		EXPECT_EQ(0, memcmp(buf, self->image.want + off, len));
	}
	free(buf);
	check_image(_metadata, self, 0, 0);
}

/* Through the device's own page cache, and past it; not at page boundaries. */
TEST_F(loop, write)
{
	int fd = open(self->dev, O_RDWR);
	unsigned char *map;

	ASSERT_LE(0, fd);
	map = file_map(_metadata, &self->image, PROT_READ, MAP_SHARED);
	touch(map, IMAGE_PAGES * PAGE);
	ASSERT_EQ(2 * PAGE, pwrite(self->fd, self->junk, 2 * PAGE,
				   4 * PAGE + 512));
	model_write(_metadata, &self->image, 4 * PAGE + 512, self->junk,
		    2 * PAGE);
	check_map(&self->image, map);
	check_image(_metadata, self, 4, 7);
	ASSERT_EQ(PAGE + 1, pwrite(fd, self->junk, PAGE + 1, 7 * PAGE + 9));
	ASSERT_EQ(0, fsync(fd));
	model_write(_metadata, &self->image, 7 * PAGE + 9, self->junk,
		    PAGE + 1);
	check_map(&self->image, map);
	check_image(_metadata, self, 4, 9);
	file_unmap(&self->image, map);
	close(fd);
}

/* Punches holes into the image. */
TEST_F(loop, discard)
{
	__u64 range[2] = { 4 * PAGE + 512, 2 * PAGE };
	unsigned char *map;

	map = file_map(_metadata, &self->image, PROT_READ, MAP_SHARED);
	touch(map, IMAGE_PAGES * PAGE);
	ASSERT_EQ(0, ioctl(self->fd, BLKZEROOUT, range)) {
		TH_LOG("BLKZEROOUT: %s", strerror(errno));
	}
	model_zero(&self->image, range[0], range[1]);
	check_map(&self->image, map);
	check_image(_metadata, self, 4, 7);
	range[0] = 7 * PAGE;
	ASSERT_EQ(0, ioctl(self->fd, BLKDISCARD, range)) {
		TH_LOG("BLKDISCARD: %s", strerror(errno));
	}
	model_zero(&self->image, range[0], range[1]);
	check_map(&self->image, map);
	check_image(_metadata, self, 4, 9);
	file_unmap(&self->image, map);
}

/* What was written to the image is what the device has. */
TEST_F(loop, write_to_image)
{
	unsigned char *buf = page_buffer(_metadata, PAGE);

	ASSERT_EQ(100, pwrite(self->image.fd, self->junk, 100, 4 * PAGE + 7));
	model_write(_metadata, &self->image, 4 * PAGE + 7, self->junk, 100);
	/* A device that reads directly does not look into the page cache. */
	ASSERT_EQ(0, fsync(self->image.fd));
	ASSERT_EQ(PAGE, pread(self->fd, buf, PAGE, 4 * PAGE));
	EXPECT_EQ(0, memcmp(buf, self->image.want + 4 * PAGE, PAGE));
	check_image(_metadata, self, 4, 5);
	free(buf);
}

/*
 * A file system inside of a shared image.  Its own files are merged as well:
 * shared pages over shared pages.
 */
FIXTURE(image) {
	char dir[MAX_PATH];
	char mnt[MAX_PATH];
	char dev[64];
	struct file image, twin;
};

FIXTURE_VARIANT(image) {
	const char *direct;
};

FIXTURE_VARIANT_ADD(image, buffered) { "off" };
FIXTURE_VARIANT_ADD(image, direct) { "on" };

FIXTURE_SETUP(image)
{
	const size_t size = 4 << 20;

	test_begin(_metadata, self->dir);
	file_create(_metadata, &self->image, self->dir, "image", 0, 1);
	ASSERT_EQ(0, run("truncate -s %zu %s && mkfs.ext4 -qF %s", size,
			 self->image.path, self->image.path));
	model_resize(_metadata, &self->image, size);
	read_model(_metadata, &self->image, self->image.fd);
	file_create(_metadata, &self->twin, self->dir, "twin", 0, 1);
	model_write(_metadata, &self->twin, 0, self->image.want, size);
	ASSERT_EQ(size, pwrite(self->twin.fd, self->twin.want, size, 0));
	ASSERT_EQ(0, fsync(self->image.fd));
	ASSERT_EQ(0, fsync(self->twin.fd));
	merge_all(&self->twin, &self->image);

	ASSERT_GT(MAX_PATH, snprintf(self->mnt, MAX_PATH, "%s/mnt", self->dir));
	ASSERT_EQ(0, mkdir(self->mnt, 0755));
	attach(_metadata, self->image.path, variant->direct, self->dev,
	       sizeof(self->dev));
	ASSERT_EQ(0, mount(self->dev, self->mnt, "ext4", 0, NULL)) {
		TH_LOG("mount: %s", strerror(errno));
	}
}

FIXTURE_TEARDOWN(image)
{
	if (self->dev[0]) {
		/* The test did not come that far. */
		umount(self->mnt);
		run("losetup -d %s", self->dev);
	}
	file_close(&self->image);
	file_close(&self->twin);
	test_end(_metadata, self->dir);
}

TEST_F(image, mounted)
{
	struct file f[2];
	unsigned char *junk = page_buffer(_metadata, PAGE), *map;
	int fd;

	fill(junk, PAGE, 99);
	for (int i = 0; i < 2; i++)
		file_create(_metadata, &f[i], self->mnt, i ? "g" : "f",
			    NPAGES * PAGE, 7);
	merge_all(&f[0], &f[1]);
	EXPECT_SHARED(&f[0], HIT, &f[1], HIT);
	map = file_map(_metadata, &f[0], PROT_READ | PROT_WRITE, MAP_SHARED);
	touch(map, NPAGES * PAGE);
	memcpy(map + HIT * PAGE, junk, PAGE);
	model_write(_metadata, &f[0], HIT * PAGE, junk, PAGE);
	ASSERT_EQ(100, pwrite(f[1].fd, junk, 100, 5 * PAGE + 5));
	model_write(_metadata, &f[1], 5 * PAGE + 5, junk, 100);
	check_map(&f[0], map);
	for (int i = 0; i < 2; i++) {
		check_file(&f[i]);
		check_disk(&f[i]);
		drop_file(_metadata, &f[i]);
		check_file(&f[i]);
	}
	file_unmap(&f[0], map);
	ASSERT_EQ(0, fallocate(f[0].fd, FALLOC_FL_PUNCH_HOLE |
			       FALLOC_FL_KEEP_SIZE, 0, 2 * PAGE));
	model_zero(&f[0], 0, 2 * PAGE);
	check_file(&f[0]);
	file_close(&f[0]);
	file_close(&f[1]);
	ASSERT_EQ(0, umount(self->mnt));
	ASSERT_EQ(0, run("losetup -d %s", self->dev));
	self->dev[0] = 0;

	/* The twin is what it was; the image has one truth, and a sound one. */
	check_file(&self->twin);
	check_disk(&self->twin);
	ASSERT_EQ(0, fsync(self->image.fd));
	fd = open(self->image.path, O_RDONLY | O_DIRECT);
	ASSERT_LE(0, fd);
	read_model(_metadata, &self->image, fd);
	close(fd);
	EXPECT_NE(0, memcmp(self->image.want, self->twin.want,
			    self->image.size));
	check_file(&self->image);
	EXPECT_EQ(0, run("e2fsck -fn %s >/dev/null 2>&1", self->image.path));
	free(junk);
}

/* ---- a file system of its own, to which things are done ---- */

/* Two files there that share all their pages. */
FIXTURE(mounted) {
	char dir[MAX_PATH];
	char mnt[MAX_PATH];
	struct file d, e;
	unsigned char *junk;
	bool frozen;
};

FIXTURE_SETUP(mounted)
{
	test_begin(_metadata, self->dir);
	self->junk = page_buffer(_metadata, NPAGES * PAGE);
	fill(self->junk, NPAGES * PAGE, 99);
}

static void thaw(struct __test_metadata *_metadata, const char *mnt)
{
	int fd = open(mnt, O_RDONLY);

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, ioctl(fd, FITHAW, 0));
	close(fd);
}

FIXTURE_TEARDOWN(mounted)
{
	if (self->frozen)
		thaw(_metadata, self->mnt);
	file_close(&self->d);
	file_close(&self->e);
	if (self->mnt[0]) {
		EXPECT_EQ(0, umount(self->mnt));
	}
	free(self->junk);
	test_end(_metadata, self->dir);
}

/* Make the file system, and the two files. */
static void mount_two(struct __test_metadata *_metadata,
		      FIXTURE_DATA(mounted) *self, const char *mkfs,
		      const char *options)
{
	mount_new(_metadata, self->dir, self->mnt, mkfs, options);
	file_create(_metadata, &self->d, self->mnt, "d", SIZE, 1);
	file_create(_metadata, &self->e, self->mnt, "e", SIZE, 1);
	merge_all(&self->d, &self->e);
	check_totals(2 * NPAGES);
}

#define check_two(own)							\
	do {								\
		check_file(&self->d);					\
		check_file(&self->e);					\
		check_totals(2 * NPAGES - (own));			\
	} while (0)

/* Does the process sleep in that system call?  -1 is a page fault. */
static bool sleeps_in(struct __test_metadata *_metadata, pid_t pid, long nr)
{
	char path[MAX_PATH], text[256], *end;

	snprintf(path, MAX_PATH, "/proc/%d/syscall", pid);
	ASSERT_EQ(0, read_text(path, text, sizeof(text)));
	return strtol(text, &end, 0) == nr && end != text;
}

/* Writers wait for the thaw; readers do not, and what is shared stays so. */
TEST_F(mounted, freeze)
{
	struct file *d = &self->d, *e = &self->e, f[2];
	unsigned char *map;
	pid_t pid[2];
	int fd, ret = 0;

	SKIP_IF_LARGE();
	mount_two(_metadata, self, mkfs_like(self->dir), "");
	for (int i = 0; i < 2; i++)
		file_create(_metadata, &f[i], self->mnt, i ? "g" : "f", PAGE,
			    7);
	map = file_map(_metadata, d, PROT_READ | PROT_WRITE, MAP_SHARED);
	touch(map, SIZE);
	sync();
	fd = open(self->mnt, O_RDONLY);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, ioctl(fd, FIFREEZE, 0)) TH_LOG("%s", strerror(errno));
	self->frozen = true;
	close(fd);
	for (int i = 0; i < 2; i++) {
		pid[i] = fork();
		ASSERT_LE(0, pid[i]);
		if (pid[i])
			continue;
		if (i)
			memcpy(map + 5 * PAGE, self->junk, PAGE);
		else if (pwrite(d->fd, self->junk, PAGE, HIT * PAGE) != PAGE)
			_exit(1);
		_exit(0);
	}
	while (!sleeps_in(_metadata, pid[0], SYS_pwrite64) ||
	       !sleeps_in(_metadata, pid[1], -1))
		sched_yield();
	check_file(d);
	check_file(e);
	check_map(d, map);
	/* Merging writes nothing. */
	for (int i = 0; i < MAX_TRIES && !control && ret != 1; i++) {
		drain_lru();
		ret = try_merge(_metadata, &f[0], 0, &f[1], 0, 1);
	}
	EXPECT_SHARED(&f[0], 0, &f[1], 0);

	thaw(_metadata, self->mnt);
	self->frozen = false;
	for (int i = 0; i < 2; i++) {
		int status;

		ASSERT_EQ(pid[i], waitpid(pid[i], &status, 0));
		EXPECT_EQ(0, status);
	}
	model_write(_metadata, d, HIT * PAGE, self->junk, PAGE);
	model_write(_metadata, d, 5 * PAGE, self->junk, PAGE);
	check_map(d, map);
	check_totals(2 * NPAGES - 2 + 2);
	check_file(d);
	check_file(e);
	check_disk(d);
	check_disk(e);
	file_unmap(d, map);
	for (int i = 0; i < 2; i++) {
		check_file(&f[i]);
		file_close(&f[i]);
	}
}

static void reopen(struct __test_metadata *_metadata, struct file *f,
		   int flags)
{
	close(f->fd);
	f->fd = open(f->path, flags);
	ASSERT_LE(0, f->fd) TH_LOG("%s: %s", f->path, strerror(errno));
}

/* Shared pages stay when the file system becomes read-only, and merge then. */
TEST_F(mounted, remount)
{
	struct file *d = &self->d, *e = &self->e;
	unsigned char *map;

	SKIP_IF_LARGE();
	mount_two(_metadata, self, mkfs_like(self->dir), "");
	ASSERT_EQ(PAGE, pwrite(d->fd, d->want, PAGE, 0));
	ASSERT_EQ(0, fsync(d->fd));
	check_two(1);
	reopen(_metadata, d, O_RDONLY);
	reopen(_metadata, e, O_RDONLY);
	map = file_map(_metadata, d, PROT_READ, MAP_SHARED);
	touch(map, SIZE);
	ASSERT_EQ(0, run("mount -o remount,ro %s", self->mnt));
	check_two(1);
	for (size_t i = 1; i < NPAGES; i++)
		EXPECT_SHARED(d, i, e, i);
	ASSERT_EQ(1, merge_pages(_metadata, e, 0, d, 0, 1));
	check_two(0);
	ASSERT_EQ(-1, open(d->path, O_RDWR));
	EXPECT_EQ(EROFS, errno);
	ASSERT_EQ(0, run("mount -o remount,rw %s", self->mnt));
	check_map(d, map);
	check_two(0);
	reopen(_metadata, d, O_RDWR);
	ASSERT_EQ(100, pwrite(d->fd, self->junk, 100, HIT * PAGE + 5));
	model_write(_metadata, d, HIT * PAGE + 5, self->junk, 100);
	check_map(d, map);
	check_two(1);
	check_disk(d);
	check_disk(e);
	file_unmap(d, map);
}

/* Verified files have no part in merging; what they shared before stays. */
TEST_F(mounted, enable_verity)
{
	struct fsverity_enable_arg arg = {
		.version = 1,
		.hash_algorithm = FS_VERITY_HASH_ALG_SHA256,
		.block_size = PAGE,
	};
	struct manual_args args = { .dst_index = HIT, .nr = 1 };
	struct file *d = &self->d, *e = &self->e;
	unsigned char *map;

	switch (fs_magic(self->dir)) {
	case EXT4_SUPER_MAGIC:
		mount_two(_metadata, self, "mkfs.ext4 -qF -b 4096 -O verity",
			  "");
		break;
	case BTRFS_SUPER_MAGIC:
		mount_two(_metadata, self, "mkfs.btrfs -qf", "");
		break;
	default:
		SKIP(return, "no fs-verity in this file system");
	}
	reopen(_metadata, d, O_RDONLY);
	map = file_map(_metadata, d, PROT_READ, MAP_SHARED);
	touch(map, SIZE);
	ASSERT_EQ(0, ioctl(d->fd, FS_IOC_ENABLE_VERITY, &arg)) {
		TH_LOG("%s (CONFIG_FS_VERITY?)", strerror(errno));
	}
	check_map(d, map);
	check_file(d);
	ASSERT_EQ(100, pwrite(e->fd, self->junk, 100, HIT * PAGE + 5));
	model_write(_metadata, e, HIT * PAGE + 5, self->junk, 100);
	check_map(d, map);
	check_file(d);
	check_file(e);
	if (!control) {
		EXPECT_EQ(-EOPNOTSUPP,
			  try_merge(_metadata, e, 1, d, HIT, 1));
		args.dst = file_id(_metadata, d);
		args.dst_index = 1;
		manual_call(manual->progs.manual_unmerge, &args);
		EXPECT_APART(d, 1, e, 1);
		check_map(d, map);
	}
	/* Read again they are verified. */
	file_unmap(d, map);
	ASSERT_EQ(0, posix_fadvise(d->fd, 0, 0, POSIX_FADV_DONTNEED));
	EXPECT_EQ(0, resident(_metadata, d));
	check_file(d);
	check_file(e);
	check_totals(NPAGES - 1);
}

static void loop_of(struct __test_metadata *_metadata, const char *mnt,
		    char *dev, size_t len)
{
	char cmd[2 * MAX_PATH];
	FILE *out;

	snprintf(cmd, sizeof(cmd), "findmnt -no SOURCE %s", mnt);
	out = popen(cmd, "r");
	ASSERT_NE(NULL, out);
	EXPECT_NE(NULL, fgets(dev, len, out));
	ASSERT_EQ(0, pclose(out)) TH_LOG("%s", cmd);
	dev[strcspn(dev, "\n")] = 0;
}

#define OWNER 1000

/* How a write by the owner ends: its errno, or the signal that a store got. */
static int write_as_owner(struct __test_metadata *_metadata,
			  const struct file *f, const void *buf, size_t off,
			  unsigned char *map)
{
	pid_t pid = fork();
	int status;

	ASSERT_LE(0, pid);
	if (!pid) {
		if (seteuid(OWNER))
			_exit(255);
		if (map)
			memcpy(map + off, buf, PAGE);
		else if (pwrite(f->fd, buf, PAGE, off) != PAGE)
			_exit(errno);
		_exit(0);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	return WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status);
}

/*
 * Holes are merged, and a write to them needs blocks that the quota does not
 * have: nothing may change.
 */
TEST_F(mounted, quota)
{
	/* KiB: one block, for page 0 */
	struct if_dqblk limit = { .dqb_bhardlimit = 4,
				  .dqb_valid = QIF_BLIMITS };
	const char *mkfs = "mkfs.ext4 -qF -b 4096 -O quota";
	struct file *d = &self->d, *e = &self->e;
	unsigned char *map;
	char dev[64];

	switch (fs_magic(self->dir)) {
	case EXT4_SUPER_MAGIC:
		break;
	case XFS_SUPER_MAGIC:
		mkfs = "mkfs.xfs -qf";
		break;
	default:
		SKIP(return, "no quota of users in this file system");
	}
	mount_new(_metadata, self->dir, self->mnt, mkfs, "-o usrquota");
	loop_of(_metadata, self->mnt, dev, sizeof(dev));
	file_create(_metadata, d, self->mnt, "d", 0, 1);
	file_create(_metadata, e, self->mnt, "e", 0, 1);
	for (int i = 0; i < 2; i++) {
		struct file *f = i ? e : d;

		ASSERT_EQ(0, fchown(f->fd, OWNER, OWNER));
		ASSERT_EQ(0, ftruncate(f->fd, SIZE));
		model_resize(_metadata, f, SIZE);
		read_to_cache(_metadata, f);
	}
	merge_all(d, e);
	ASSERT_EQ(0, quotactl(QCMD(Q_SETQUOTA, USRQUOTA), dev, OWNER,
			      (char *)&limit)) {
		TH_LOG("Q_SETQUOTA on %s: %s", dev, strerror(errno));
	}
	map = file_map(_metadata, d, PROT_READ | PROT_WRITE, MAP_SHARED);
	touch(map, SIZE);
	ASSERT_EQ(0, write_as_owner(_metadata, d, self->junk, 0, NULL));
	model_write(_metadata, d, 0, self->junk, PAGE);
	ASSERT_EQ(0, fsync(d->fd));
	EXPECT_EQ(EDQUOT, write_as_owner(_metadata, d, self->junk, HIT * PAGE,
					 NULL));
	EXPECT_EQ(SIGBUS, write_as_owner(_metadata, d, self->junk, HIT * PAGE,
					 map));
	check_map(d, map);
	check_file(d);
	check_file(e);
	ASSERT_EQ(0, quotactl(QCMD(Q_QUOTAOFF, USRQUOTA), dev, 0, NULL));
	EXPECT_EQ(0, write_as_owner(_metadata, d, self->junk, HIT * PAGE,
				    map));
	model_write(_metadata, d, HIT * PAGE, self->junk, PAGE);
	check_map(d, map);
	ASSERT_EQ(0, quotactl(QCMD(Q_QUOTAON, USRQUOTA), dev, QFMT_VFS_V1,
			      NULL)) {
		TH_LOG("Q_QUOTAON on %s: %s", dev, strerror(errno));
	}
	EXPECT_EQ(EDQUOT, write_as_owner(_metadata, d, self->junk, 5 * PAGE,
					 NULL));
	check_map(d, map);
	check_file(d);
	check_file(e);
	check_disk(d);
	check_disk(e);
	file_unmap(d, map);
}

/* The same where quotas are those of subvolumes. */
TEST_F(mounted, quota_group)
{
	struct file *d = &self->d, *e = &self->e;
	unsigned char *map;

	if (fs_magic(self->dir) != BTRFS_SUPER_MAGIC)
		SKIP(return, "no quota of subvolumes in this file system");
	mount_two(_metadata, self, "mkfs.btrfs -qf", "");
	map = file_map(_metadata, d, PROT_READ | PROT_WRITE, MAP_SHARED);
	touch(map, SIZE);
	ASSERT_EQ(0, run("btrfs quota enable %s && "
			 "btrfs -q quota rescan -w %s && "
			 "btrfs qgroup limit 4K %s", self->mnt, self->mnt,
			 self->mnt));
	EXPECT_EQ(EDQUOT, write_as_owner(_metadata, d, self->junk, HIT * PAGE,
					 NULL));
	EXPECT_EQ(SIGBUS, write_as_owner(_metadata, d, self->junk, HIT * PAGE,
					 map));
	check_map(d, map);
	check_file(d);
	check_file(e);
	ASSERT_EQ(0, run("btrfs quota disable %s", self->mnt));
	EXPECT_EQ(0, write_as_owner(_metadata, d, self->junk, HIT * PAGE,
				    map));
	model_write(_metadata, d, HIT * PAGE, self->junk, PAGE);
	check_map(d, map);
	check_file(d);
	check_file(e);
	check_disk(d);
	check_disk(e);
	file_unmap(d, map);
}

/*
 * The old kind of quota file is an ordinary one, until the kernel writes to its
 * blocks behind the back of the page cache.
 */
TEST_F(mounted, quota_file)
{
	/*
	 * An empty one: magic, version, grace times, two blocks of 1 KiB.  The
	 * kernel takes the following ones as it needs them, up to page 1.
	 */
	const __u32 head[] = { 0xd9c01f11, 1, 604800, 604800, 0, 2, 0, 0 };
	struct if_dqblk limit = { .dqb_bhardlimit = 1000,
				  .dqb_valid = QIF_BLIMITS };
	struct file *d = &self->d, *e = &self->e;
	char dev[64];
	int fd;

	if (fs_magic(self->dir) != EXT4_SUPER_MAGIC)
		SKIP(return, "no quota files in this file system");
	mount_new(_metadata, self->dir, self->mnt, "mkfs.ext4 -qF -b 4096",
		  "-o usrquota");
	loop_of(_metadata, self->mnt, dev, sizeof(dev));
	for (int i = 0; i < 2; i++) {
		struct file *f = i ? e : d;

		file_create(_metadata, f, self->mnt, i ? "copy" : "aquota.user",
			    0, 1);
		model_resize(_metadata, f, 2 * PAGE);
		memcpy(f->want, head, sizeof(head));
		ASSERT_EQ(2 * PAGE, pwrite(f->fd, f->want, 2 * PAGE, 0));
		ASSERT_EQ(0, fsync(f->fd));
	}
	merge_all(e, d);
	check_totals(2 * 2);
	ASSERT_EQ(0, quotactl(QCMD(Q_QUOTAON, USRQUOTA), dev, QFMT_VFS_V1,
			      d->path)) {
		TH_LOG("Q_QUOTAON on %s: %s", dev, strerror(errno));
	}
	ASSERT_EQ(0, quotactl(QCMD(Q_SETQUOTA, USRQUOTA), dev, OWNER,
			      (char *)&limit));
	ASSERT_EQ(0, quotactl(QCMD(Q_QUOTAOFF, USRQUOTA), dev, 0, NULL));

	/* What it has now is on the disk. */
	fd = open(d->path, O_RDONLY | O_DIRECT);
	ASSERT_LE(0, fd);
	read_model(_metadata, d, fd);
	close(fd);
	for (size_t i = 0; i < 2; i++) {
		EXPECT_NE(0, memcmp(d->want + i * PAGE, e->want + i * PAGE,
				    PAGE));
	}
	check_file(d);
	check_file(e);
	check_disk(e);
	EXPECT_APART(d, 0, e, 0);
	EXPECT_APART(d, 1, e, 1);
}

/* ---- files with equal numbers ---- */

/* Merge by ids: these files can not be told apart by device and number. */
static void merge_ids(struct __test_metadata *_metadata, __u64 dst, __u64 src,
		      unsigned int nr)
{
	struct manual_args args = { .dst = dst, .src = src };
	unsigned int tries = 0;
	int ret;

	while (args.dst_index < nr && !control) {
		args.nr = nr - args.dst_index;
		ret = manual_call(manual->progs.manual_merge, &args);
		if (ret == -EBUSY && ++tries < MAX_TRIES) {
			sync();
			drain_lru();
			continue;
		}
		ASSERT_LT(0, ret);
		args.dst_index += ret;
		args.src_index += ret;
	}
}

/* The id of the one that was seen last of those with this number. */
static __u64 newest_id(struct __test_metadata *_metadata, const struct file *f)
{
	return control ? 0 : file_id(_metadata, f);
}

/* One file in each of two subvolumes, or in one and a snapshot of it. */
static void equal_numbers(struct __test_metadata *_metadata,
			  FIXTURE_DATA(mounted) *self, bool snapshot)
{
	struct file *d = &self->d, *e = &self->e;
	struct stat st[2];
	char sub[2][MAX_PATH];
	unsigned char *map;
	__u64 id[2];

	if (fs_magic(self->dir) != BTRFS_SUPER_MAGIC)
		SKIP(return, "no subvolumes in this file system");
	mount_new(_metadata, self->dir, self->mnt, "mkfs.btrfs -qf", "");
	for (int i = 0; i < 2; i++)
		ASSERT_GT(MAX_PATH, snprintf(sub[i], MAX_PATH, "%s/%d",
					     self->mnt, i));
	ASSERT_EQ(0, run("btrfs -q subvolume create %s", sub[0]));
	file_create(_metadata, d, sub[0], "x", SIZE, 1);
	id[0] = newest_id(_metadata, d);
	if (snapshot) {
		struct file twin;

		/* Of a file that shares its pages already. */
		file_create(_metadata, &twin, sub[0], "twin", SIZE, 1);
		merge_all(d, &twin);
		file_close(&twin);
		ASSERT_EQ(0, unlink(twin.path));
		ASSERT_EQ(0, run("btrfs -q subvolume snapshot %s %s", sub[0],
				 sub[1]));
		file_open(_metadata, e, sub[1], "x", O_RDWR, d);
		read_to_cache(_metadata, e);
	} else {
		ASSERT_EQ(0, run("btrfs -q subvolume create %s", sub[1]));
		file_create(_metadata, e, sub[1], "x", SIZE, 1);
	}
	id[1] = newest_id(_metadata, e);
	ASSERT_EQ(0, fstat(d->fd, &st[0]));
	ASSERT_EQ(0, fstat(e->fd, &st[1]));
	EXPECT_EQ(st[0].st_ino, st[1].st_ino);
	EXPECT_NE(st[0].st_dev, st[1].st_dev);
	if (!control) {
		EXPECT_NE(id[0], id[1]);
	}
	merge_ids(_metadata, id[0], id[1], NPAGES);
	for (size_t i = 0; i < NPAGES; i++)
		EXPECT_SHARED(d, i, e, i);

	map = file_map(_metadata, e, PROT_READ | PROT_WRITE, MAP_SHARED);
	touch(map, SIZE);
	ASSERT_EQ(100, pwrite(d->fd, self->junk, 100, HIT * PAGE + 5));
	model_write(_metadata, d, HIT * PAGE + 5, self->junk, 100);
	check_map(e, map);
	check_file(d);
	check_file(e);
	memcpy(map + 5 * PAGE, self->junk, 100);
	model_write(_metadata, e, 5 * PAGE, self->junk, 100);
	check_map(e, map);
	check_two(2);
	check_disk(d);
	check_disk(e);
	file_unmap(e, map);
	for (size_t i = 0; i < NPAGES; i++) {
		if (i == HIT || i == 5) {
			EXPECT_APART(d, i, e, i);
		} else {
			EXPECT_SHARED(d, i, e, i);
		}
	}
}

TEST_F(mounted, subvolumes)
{
	equal_numbers(_metadata, self, false);
}

TEST_F(mounted, snapshot)
{
	equal_numbers(_metadata, self, true);
}

static bool is_compressed(struct __test_metadata *_metadata,
			  const struct file *f)
{
	struct {
		struct fiemap map;
		struct fiemap_extent extent;
	} query = { .map = {
		.fm_length = f->size,
		.fm_flags = FIEMAP_FLAG_SYNC,
		.fm_extent_count = 1,
	} };

	ASSERT_EQ(0, ioctl(f->fd, FS_IOC_FIEMAP, &query));
	ASSERT_EQ(1, query.map.fm_mapped_extents);
	return query.extent.fe_flags & FIEMAP_EXTENT_ENCODED;
}

/* Compressed pages are read, broken and written back several at once. */
TEST_F(mounted, compressed)
{
	struct file *d = &self->d, *e = &self->e;
	unsigned char *map;
	int fd;

	if (fs_magic(self->dir) != BTRFS_SUPER_MAGIC)
		SKIP(return, "no compression in this file system");
	mount_two(_metadata, self, "mkfs.btrfs -qf", "-o compress-force=zstd");
	EXPECT_TRUE(is_compressed(_metadata, d));
	EXPECT_TRUE(is_compressed(_metadata, e));
	map = file_map(_metadata, d, PROT_READ | PROT_WRITE, MAP_SHARED);
	touch(map, SIZE);

	ASSERT_EQ(100, pwrite(d->fd, self->junk, 100, HIT * PAGE + 5));
	model_write(_metadata, d, HIT * PAGE + 5, self->junk, 100);
	memcpy(map + 5 * PAGE, self->junk, PAGE);
	model_write(_metadata, d, 5 * PAGE, self->junk, PAGE);
	check_map(d, map);
	check_two(2);
	check_disk(d);
	check_disk(e);

	/* What is dropped is read with the rest of its extent. */
	ASSERT_EQ(0, posix_fadvise(e->fd, PAGE, PAGE, POSIX_FADV_DONTNEED));
	ASSERT_EQ(0, run("echo 1 >/proc/sys/vm/drop_caches"));
	check_file(e);
	check_map(d, map);
	merge_pages(_metadata, d, 1, e, 1, 1);
	check_map(d, map);

	fd = open(e->path, O_WRONLY | O_DIRECT);
	ASSERT_LE(0, fd);
	ASSERT_EQ(PAGE, pwrite(fd, self->junk, PAGE, PAGE));
	model_write(_metadata, e, PAGE, self->junk, PAGE);
	close(fd);
	check_map(d, map);
	check_file(d);
	check_file(e);
	check_disk(d);
	check_disk(e);
	file_unmap(d, map);
}

/* ---- erofs ---- */

/*
 * Files of a read-only file system share with each other, and with one that can
 * be written.
 */
static void erofs(struct __test_metadata *_metadata,
		  FIXTURE_DATA(mounted) *self, const char *options)
{
	struct file *d = &self->d, *e = &self->e, f;
	char image[MAX_PATH + 4];
	unsigned char *map[2];
	struct stat st;

	file_create(_metadata, d, self->dir, "d", SIZE, 1);
	ASSERT_EQ(0, run("mkdir %s/tree %s/mnt && cp %s %s/tree/e && "
			 "cp %s %s/tree/f && mkfs.erofs %s %s/mnt.img %s/tree "
			 ">/dev/null", self->dir, self->dir, d->path, self->dir,
			 d->path, self->dir, options, self->dir, self->dir));
	ASSERT_GT(MAX_PATH, snprintf(self->mnt, MAX_PATH, "%s/mnt", self->dir));
	snprintf(image, sizeof(image), "%s.img", self->mnt);
	ASSERT_EQ(0, stat(image, &st));
	/* Its two files alone are larger if they are not compressed. */
	EXPECT_EQ(*options != 0, st.st_size < 2 * (NPAGES - 1) * PAGE);
	ASSERT_EQ(0, run("mount -t erofs -o loop %s %s", image, self->mnt));
	file_open(_metadata, e, self->mnt, "e", O_RDONLY, d);
	file_open(_metadata, &f, self->mnt, "f", O_RDONLY, d);
	read_to_cache(_metadata, e);
	read_to_cache(_metadata, &f);
	/* Large folios of the one side only are split. */
	merge_all(d, e);
	merge_all(d, &f);
	check_totals(3 * NPAGES);
	for (size_t i = 0; i < NPAGES; i++) {
		EXPECT_SHARED(e, i, &f, i);
		EXPECT_SHARED(e, i, d, i);
	}
	map[0] = file_map(_metadata, e, PROT_READ, MAP_SHARED);
	map[1] = file_map(_metadata, d, PROT_READ | PROT_WRITE, MAP_SHARED);
	touch(map[0], SIZE);
	touch(map[1], SIZE);

	ASSERT_EQ(100, pwrite(d->fd, self->junk, 100, HIT * PAGE + 5));
	model_write(_metadata, d, HIT * PAGE + 5, self->junk, 100);
	memcpy(map[1] + 5 * PAGE, self->junk, 100);
	model_write(_metadata, d, 5 * PAGE, self->junk, 100);
	check_map(d, map[1]);
	check_map(e, map[0]);
	check_file(d);
	check_disk(d);
	check_file(e);
	check_file(&f);
	check_totals(3 * NPAGES - 2);

	/* What is dropped can be read again, and be merged again. */
	file_unmap(e, map[0]);
	ASSERT_EQ(0, posix_fadvise(e->fd, 0, 0, POSIX_FADV_DONTNEED));
	ASSERT_EQ(0, resident(_metadata, e));
	check_file(e);
	EXPECT_SHARED(&f, 0, d, 0);
	merge_all(&f, e);
	EXPECT_SHARED(e, 0, d, 0);
	check_file(e);
	file_unmap(d, map[1]);
	file_close(&f);
}

TEST_F(mounted, erofs)
{
	erofs(_metadata, self, "");
}

TEST_F(mounted, erofs_compressed)
{
	erofs(_metadata, self, "-zlz4");
}

/* ---- NFS ---- */

#define RPC_CACHE "/proc/net/rpc/"

/* A served by the kernel's own server, and mounted by its own client */
FIXTURE(nfs) {
	struct trio t;
	char mnt[MAX_PATH];
	char clients[MAX_PATH];
	struct file file;		/* A, as seen through NFS */
};

/* Tell the server what otherwise its daemons do. */
static void tell_server(struct __test_metadata *_metadata, const char *file,
			const char *format, ...)
{
	char text[2 * MAX_PATH];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	ASSERT_EQ(0, write_text(file, text)) {
		TH_LOG("%s: %s: %s", file, text, strerror(errno));
	}
}

static void forget_exports(struct __test_metadata *_metadata)
{
	static const char *const caches[] = {
		"nfsd.fh", "nfsd.export", "auth.unix.ip",
	};
	char path[MAX_PATH];

	for (size_t i = 0; i < ARRAY_SIZE(caches); i++) {
		snprintf(path, MAX_PATH, RPC_CACHE "%s/flush", caches[i]);
		tell_server(_metadata, path, "%ld\n", time(NULL) + 1);
	}
}

FIXTURE_SETUP(nfs)
{
	struct trio *t = &self->t;

	trio_begin(_metadata, t);
	ASSERT_GT(MAX_PATH, snprintf(self->mnt, MAX_PATH, "%s/mnt", t->dir));
	ASSERT_EQ(0, mkdir(self->mnt, 0755));
	ASSERT_EQ(0, mount("nfsd", "/proc/fs/nfsd", "nfsd", 0, NULL)) {
		TH_LOG("%s (CONFIG_NFSD?)", strerror(errno));
	}
	/* Where it remembers clients, of which there are none to wait for */
	snprintf(self->clients, MAX_PATH, "/tmp/nfs.%d", getpid());
	ASSERT_EQ(0, mkdir(self->clients, 0700));
	tell_server(_metadata, "/proc/fs/nfsd/nfsv4recoverydir", "%s\n",
		    self->clients);
	tell_server(_metadata, "/proc/fs/nfsd/versions", "-3 +4 +4.1 +4.2\n");
	tell_server(_metadata, "/proc/fs/nfsd/portlist", "tcp 2049\n");
	tell_server(_metadata, "/proc/fs/nfsd/threads", "2\n");
	tell_server(_metadata, "/proc/fs/nfsd/v4_end_grace", "Y\n");
	tell_server(_metadata, RPC_CACHE "auth.unix.ip/channel",
		    "nfsd 127.0.0.1 2147483647 ksm_ext\n");
	/* NFSEXP_FSID, NFSEXP_NOSUBTREECHECK, NFSEXP_INSECURE_PORT */
	tell_server(_metadata, RPC_CACHE "nfsd.export/channel",
		    "ksm_ext %s 2147483647 %d 65534 65534 0\n", t->dir,
		    0x2000 | 0x400 | 0x2);
	tell_server(_metadata, RPC_CACHE "nfsd.fh/channel",
		    "ksm_ext 1 \\x00000000 2147483647 %s\n", t->dir);
	ASSERT_EQ(0, mount("127.0.0.1:/", self->mnt, "nfs4", 0,
			   "addr=127.0.0.1,clientaddr=127.0.0.1,vers=4.2")) {
		TH_LOG("%s", strerror(errno));
	}
	file_open(_metadata, &self->file, self->mnt, "a", O_RDWR, &t->a);
}

FIXTURE_TEARDOWN(nfs)
{
	file_close(&self->file);
	EXPECT_EQ(0, umount(self->mnt));
	tell_server(_metadata, "/proc/fs/nfsd/threads", "0\n");
	forget_exports(_metadata);
	EXPECT_EQ(0, umount("/proc/fs/nfsd"));
	EXPECT_EQ(0, remove_tree(self->clients));
	trio_end(_metadata, &self->t);
}

/* What the client has done to its file was done to A. */
#define check_served(first, end)					\
	do {								\
		memcpy(self->t.a.want, self->file.want, SIZE);		\
		check_file(&self->file);				\
		check_broken(&self->t, first, end);			\
	} while (0)

TEST_F(nfs, read)
{
	unsigned char *map = file_map(_metadata, &self->file, PROT_READ,
				      MAP_SHARED);

	check_map(&self->file, map);
	file_unmap(&self->file, map);
	check_disk(&self->file);
	check_served(0, 0);
}

TEST_F(nfs, write)
{
	struct file *f = &self->file;
	unsigned char *map;
	int fd;

	map = file_map(_metadata, f, PROT_READ | PROT_WRITE, MAP_SHARED);
	ASSERT_EQ(100, pwrite(f->fd, self->t.junk, 100, HIT * PAGE + 50));
	model_write(_metadata, f, HIT * PAGE + 50, self->t.junk, 100);
	memcpy(map + (HIT + 1) * PAGE, self->t.junk, 100);
	model_write(_metadata, f, (HIT + 1) * PAGE, self->t.junk, 100);
	ASSERT_EQ(0, msync(map, SIZE, MS_SYNC));
	ASSERT_EQ(0, fsync(f->fd));
	file_unmap(f, map);
	fd = open(f->path, O_RDWR | O_DIRECT);
	ASSERT_LE(0, fd);
	ASSERT_EQ(PAGE, pwrite(fd, self->t.junk, PAGE, (HIT + 2) * PAGE));
	model_write(_metadata, f, (HIT + 2) * PAGE, self->t.junk, PAGE);
	close(fd);
	check_served(HIT, HIT + 3);
}

/* The server copies, or clones, by itself. */
TEST_F(nfs, copy_file_range)
{
	struct file *f = &self->file, other;
	loff_t from = 0, to = HIT * PAGE;

	file_create(_metadata, &other, self->mnt, "other", 2 * PAGE, 5);
	ASSERT_EQ(2 * PAGE, copy_file_range(other.fd, &from, f->fd, &to,
					    2 * PAGE, 0));
	model_write(_metadata, f, HIT * PAGE, other.want, 2 * PAGE);
	ASSERT_EQ(0, fsync(f->fd));
	file_close(&other);
	check_served(HIT, HIT + 2);
}

TEST_F(nfs, punch_hole)
{
	struct file *f = &self->file;

	ASSERT_EQ(0, fallocate(f->fd, FALLOC_FL_PUNCH_HOLE |
			       FALLOC_FL_KEEP_SIZE, HIT * PAGE, 4 * PAGE));
	model_zero(f, HIT * PAGE, 4 * PAGE);
	check_served(HIT, HIT + 4);
}

MANUAL_TEST_MAIN
