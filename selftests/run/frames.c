// SPDX-License-Identifier: GPL-2.0
/*
 * frames - do two processes have a library in the same page frames?
 *
 * For each page of the library that both have touched: its offset in the file
 * and the page frame in either process.  Ends with the totals; the exit status
 * is 0 when at least one page is compared and all are the same.
 */
#include <err.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PAGE		4096
#define PRESENT		(1ULL << 63)
#define FILE_PAGE	(1ULL << 61)
#define PFN_MASK	((1ULL << 55) - 1)
#define MAX_PAGES	8192
#define SAMPLES		4

static uint64_t frames[2][MAX_PAGES];	/* by page of the file */

static void read_frames(const char *pid, const char *library, uint64_t *to)
{
	uint64_t start, end, offset, entry;
	char path[64], line[4096], *slash;
	int pagemap;
	FILE *maps;

	snprintf(path, sizeof(path), "/proc/%s/pagemap", pid);
	pagemap = open(path, O_RDONLY);
	if (pagemap < 0)
		err(2, "%s", path);
	snprintf(path, sizeof(path), "/proc/%s/maps", pid);
	maps = fopen(path, "r");
	if (!maps)
		err(2, "%s", path);

	while (fgets(line, sizeof(line), maps)) {
		line[strcspn(line, "\n")] = '\0';
		slash = strrchr(line, '/');
		if (!slash || strcmp(slash + 1, library) ||
		    sscanf(line, "%" SCNx64 "-%" SCNx64 " %*s %" SCNx64,
			   &start, &end, &offset) != 3)
			continue;
		for (; start < end; start += PAGE, offset += PAGE) {
			if (offset / PAGE >= MAX_PAGES)
				break;
			if (pread(pagemap, &entry, 8, start / PAGE * 8) != 8)
				err(2, "pagemap of process %s", pid);
			/* Pages that the linker wrote to are not the file's. */
			if ((entry & PRESENT) && (entry & FILE_PAGE))
				to[offset / PAGE] = entry & PFN_MASK;
		}
	}
	fclose(maps);
	close(pagemap);
}

int main(int argc, char **argv)
{
	unsigned int i, both = 0, same = 0;
	bool equal;

	if (argc != 4)
		errx(2, "usage: frames PID PID LIBRARY");
	read_frames(argv[1], argv[3], frames[0]);
	read_frames(argv[2], argv[3], frames[1]);

	for (i = 0; i < MAX_PAGES; i++) {
		if (!frames[0][i] || !frames[1][i])
			continue;
		equal = frames[0][i] == frames[1][i];
		both++;
		same += equal;
		if (both <= SAMPLES || !equal)
			printf("  page %4u  frame %#9" PRIx64 "  frame %#9"
			       PRIx64 "  %s\n", i, frames[0][i], frames[1][i],
			       equal ? "same" : "DIFFERENT");
	}
	printf("  %u of %u pages of %s share a frame\n", same, both, argv[3]);
	return !both || same != both;
}
