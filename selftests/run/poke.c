// SPDX-License-Identifier: GPL-2.0
/*
 * poke - write some text into a file, in one of two ways
 */
#include <err.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	off_t offset;
	size_t len;
	char *map;
	int fd;

	if (argc != 5)
		errx(2, "usage: poke write|mmap FILE PAGE TEXT");
	offset = strtol(argv[3], NULL, 10) * getpagesize();
	len = strlen(argv[4]);
	fd = open(argv[2], O_RDWR);
	if (fd < 0)
		err(1, "%s", argv[2]);

	if (!strcmp(argv[1], "write")) {
		if (pwrite(fd, argv[4], len, offset) != (ssize_t)len)
			err(1, "%s: pwrite", argv[2]);
	} else if (!strcmp(argv[1], "mmap")) {
		map = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
			   offset);
		if (map == MAP_FAILED)
			err(1, "%s: mmap", argv[2]);
		memcpy(map, argv[4], len);
		munmap(map, len);
	} else {
		errx(2, "no way of writing called '%s'", argv[1]);
	}
	return close(fd) ? 1 : 0;
}
