// SPDX-License-Identifier: GPL-2.0
/*
 * top: what is merged and broken, as it happens.
 */
#include <errno.h>
#include <math.h>
#include <ncurses.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "look.h"

/* Files to look for, of which the screen may have no room for all */
#define MAX_FILES	10

/* What one look sees. */
struct sample {
	cJSON *status;		/* with "top" where the kernel tells of files */
	double time;		/* s */
	double cpu;		/* s that ksm_extd has used */
};

/* What two looks make. */
struct rates {
	double merged, broken, refused;	/* a second */
	double cpu;			/* percent of one processor */
};

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

/* The files that share most. */
static cJSON *read_files(void)
{
	struct look_count files[MAX_FILES];
	cJSON *list = cJSON_CreateArray();
	int i, nr;

	nr = look_for_files(files, MAX_FILES);
	for (i = 0; i < nr; i++) {
		cJSON *item = cJSON_CreateObject();

		cJSON_AddStringToObject(item, "path", look_path(files[i].id));
		cJSON_AddNumberToObject(item, "pages", files[i].pages);
		cJSON_AddItemToArray(list, item);
	}
	return list;
}

static void look(struct sample *s, bool files)
{
	s->status = read_status();
	if (files)
		cJSON_AddItemToObject(s->status, "top", read_files());
	s->time = now();
	if (!ksm_extd_cpu_seconds(&s->cpu))
		s->cpu = 0;
}

/* The sum of a folder's counters whose names begin so. */
static double sum(const struct sample *s, const char *folder,
		  const char *prefix)
{
	const cJSON *item;
	double total = 0;

	cJSON_ArrayForEach(item, cJSON_GetObjectItem(s->status, folder)) {
		if (!strncmp(item->string, prefix, strlen(prefix)))
			total += item->valuedouble;
	}
	return total;
}

static struct rates compare(const struct sample *a, const struct sample *b)
{
	double time = b->time - a->time;

	return (struct rates) {
		.merged = (sum(b, "merge", "applied") -
			   sum(a, "merge", "applied")) / time,
		.broken = (sum(b, "break", "") - sum(a, "break", "")) / time,
		.refused = (sum(b, "merge", "refused_") -
			    sum(a, "merge", "refused_")) / time,
		.cpu = 100 * (b->cpu - a->cpu) / time,
	};
}

/* ---- plain ---- */

#define HEADER	"    saved   profit   merged   broken  refused  cpu policy"

static void print_plain(const struct sample *s, const struct rates *r,
			unsigned long line)
{
	if (line % 20 == 0)
		printf(HEADER "\n      MiB      MiB       /s       /s       /s"
		       "    %%\n");
	printf("%9.1f%9.1f%9.0f%9.0f%9.0f%5.0f %s %s\n",
	       get_number(s->status, "saved_bytes") / MIB,
	       get_number(s->status, "general_profit") / MIB,
	       r->merged, r->broken, r->refused, r->cpu,
	       get_string(s->status, "policy"),
	       get_string(s->status, "state"));
	fflush(stdout);
}

static void print_rates(const struct sample *s, const struct rates *r)
{
	cJSON *object = cJSON_Duplicate(s->status, true), *rates;

	rates = cJSON_AddObjectToObject(object, "rates");
	cJSON_AddNumberToObject(rates, "merged", r->merged);
	cJSON_AddNumberToObject(rates, "broken", r->broken);
	cJSON_AddNumberToObject(rates, "refused", r->refused);
	cJSON_AddNumberToObject(rates, "cpu_percent", r->cpu);
	print_json_line(object);
	fflush(stdout);
}

/* ---- on a terminal ---- */

/* A line, cut to fit; the last one is for the keys. */
static void __attribute__((format(printf, 2, 3)))
put(int y, const char *fmt, ...)
{
	char text[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (y < LINES - 1)
		mvaddnstr(y, 0, text, COLS);
}

/* The counters of a folder that moved or are not zero, largest rate first. */
struct row {
	const char *name;
	double total, rate;
};

static int compare_rows(const void *a, const void *b)
{
	const struct row *x = a, *y = b;

	if (x->rate != y->rate)
		return x->rate < y->rate ? 1 : -1;
	return x->total == y->total ? 0 : x->total < y->total ? 1 : -1;
}

static int draw_folder(int y, const struct sample *a, const struct sample *b,
		       const char *folder)
{
	const cJSON *before = cJSON_GetObjectItem(a->status, folder), *item;
	struct row rows[64];
	int nr = 0, i;

	cJSON_ArrayForEach(item, cJSON_GetObjectItem(b->status, folder)) {
		if (!item->valuedouble || nr == ARRAY_SIZE(rows))
			continue;
		rows[nr++] = (struct row) {
			.name = item->string,
			.total = item->valuedouble,
			.rate = (item->valuedouble -
				 get_number(before, item->string)) /
				(b->time - a->time),
		};
	}
	qsort(rows, nr, sizeof(*rows), compare_rows);

	attron(A_REVERSE);
	put(y++, "%-24s %14s %14s", folder, "a second", "in all");
	attroff(A_REVERSE);
	for (i = 0; i < nr; i++)
		put(y++, "%-24s %14.0f %14.0f", rows[i].name,
			 rows[i].rate, rows[i].total);
	return y + 1;
}

/* A file; of a path that is too long, the end is what tells most. */
static void put_file(int y, double pages, const char *path)
{
	size_t room = COLS > 20 ? COLS - 14 : 6, len = strlen(path);

	if (len > room)
		put(y, "%12.0f  ...%s", pages, path + len - (room - 3));
	else
		put(y, "%12.0f  %s", pages, path);
}

/* They come first, and leave room for counters, on any screen. */
static int draw_files(int y, const struct sample *s)
{
	const cJSON *list = cJSON_GetObjectItem(s->status, "top"), *item;
	int nr = 0;

	if (!list)
		return y;
	attron(A_REVERSE);
	put(y++, "%12s  %-26s %14s", "shared pages", "of", "");
	attroff(A_REVERSE);
	cJSON_ArrayForEach(item, list) {
		if (nr++ < LINES / 4)
			put_file(y++, get_number(item, "pages"),
				 get_string(item, "path"));
	}
	return y + 1;
}

static void draw(const struct sample *a, const struct sample *b,
		 const struct rates *r)
{
	const cJSON *status = b->status;
	int y = 0;

	erase();
	put(y++, "policy   %s, %s",
		 *get_string(status, "policy") ?
		 get_string(status, "policy") : "none",
		 get_string(status, "state"));
	if (cJSON_IsTrue(cJSON_GetObjectItem(status, "dry_run")))
		put(y++, "dry run  %.0f pairs of pages would have been merged",
			 get_number(cJSON_GetObjectItem(status, "merge"),
				    "would_merge"));
	put(y++, "saved    %.1f MiB, %.1f MiB after metadata",
		 get_number(status, "saved_bytes") / MIB,
		 get_number(status, "general_profit") / MIB);
	put(y++, "shared   %.0f roots with %.0f aliases; %.0f files known",
		 get_number(status, "pages_shared"),
		 get_number(status, "aliases"),
		 get_number(status, "files_known"));
	put(y++, "now      %.0f merged, %.0f broken, %.0f refused a second",
		 r->merged, r->broken, r->refused);
	put(y++, "ksm_extd %.0f %% of a processor", r->cpu);
	y++;
	y = draw_files(y, b);
	y = draw_folder(y, a, b, "merge");
	draw_folder(y, a, b, "break");
	mvaddnstr(LINES - 1, 0, "q quits", COLS);
	refresh();
}

/* ---- both ---- */

struct watch {
	struct sample before, after;
	struct rates rates;
	SCREEN *screen;		/* NULL for plain lines */
	bool files;		/* the kernel tells which files share */
	unsigned long line;
};

static void show(struct watch *w)
{
	if (w->screen)
		draw(&w->before, &w->after, &w->rates);
	else if (options.json)
		print_rates(&w->after, &w->rates);
	else
		print_plain(&w->after, &w->rates, w->line);
}

/* Return: false when it is time to leave. */
static bool handle_key(struct watch *w)
{
	int key = getch();

	/* ncurses turns a change of size into a key. */
	if (key == KEY_RESIZE && w->after.status)
		show(w);
	return key != 'q' && key != 'Q';
}

/* Return: false when it is time to leave. */
static bool wait_for_tick(struct watch *w, int timer)
{
	struct pollfd fds[] = {
		{ .fd = timer, .events = POLLIN },
		{ .fd = w->screen ? STDIN_FILENO : -1, .events = POLLIN },
	};
	uint64_t ticks;

	for (;;) {
		int n = poll(fds, ARRAY_SIZE(fds), -1);

		if (n < 0 && errno != EINTR)
			return false;
		if (w->screen && !handle_key(w))
			return false;
		if (n > 0 && fds[1].revents & (POLLHUP | POLLERR))
			return false;
		if (n > 0 && fds[0].revents &&
		    read(timer, &ticks, sizeof(ticks)) == sizeof(ticks))
			return true;
	}
}

static int start_timer(double interval)
{
	struct itimerspec spec = {};
	int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);

	spec.it_interval.tv_sec = interval;
	spec.it_interval.tv_nsec = (interval - floor(interval)) * 1e9;
	spec.it_value = spec.it_interval;
	if (fd >= 0 && timerfd_settime(fd, 0, &spec, NULL)) {
		close(fd);
		return -1;
	}
	return fd;
}

static SCREEN *open_screen(void)
{
	SCREEN *screen;

	if (options.json || !isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO))
		return NULL;
	screen = newterm(NULL, stdout, stdin);
	if (!screen)
		return NULL;
	cbreak();
	noecho();
	curs_set(0);
	keypad(stdscr, true);
	nodelay(stdscr, true);
	return screen;
}

static int watch(double interval, unsigned long count)
{
	struct watch w = {};
	int timer;

	timer = start_timer(interval);
	if (timer < 0)
		return fail(KSMX_FAILED, "cannot make a timer: %s",
			    strerror(errno));
	w.screen = open_screen();
	/* Plain lines have no room for files. */
	w.files = (w.screen || options.json) && !look_load();
	look(&w.before, w.files);
	while ((!count || w.line < count) && wait_for_tick(&w, timer)) {
		if (w.after.status) {
			cJSON_Delete(w.before.status);
			w.before = w.after;
		}
		look(&w.after, w.files);
		w.rates = compare(&w.before, &w.after);
		show(&w);
		w.line++;
	}
	if (w.screen) {
		endwin();
		delscreen(w.screen);
	}
	cJSON_Delete(w.before.status);
	cJSON_Delete(w.after.status);
	close(timer);
	return KSMX_OK;
}

int cmd_top(int argc, char **argv)
{
	unsigned long count = 0;
	double interval = 2;
	char *end;
	int ret;

	if (argc > 0) {
		interval = strtod(argv[0], &end);
		/* Neither is a NaN. */
		if (*end || end == argv[0] ||
		    !(interval >= 0.01 && interval <= 86400))
			return fail(KSMX_USAGE,
				    "interval '%s': seconds from 0.01 to 86400",
				    argv[0]);
	}
	if (argc > 1) {
		errno = 0;
		count = strtoul(argv[1], &end, 10);
		if (errno || *end || !count || argv[1][0] == '-')
			return fail(KSMX_USAGE, "count '%s': a number from 1",
				    argv[1]);
	}
	ret = check_support();
	if (ret)
		return ret;
	if (access(SYSFS "/pages_sharing", R_OK))
		return fail(KSMX_NO_PRIVILEGE,
			    "counters are shown to root only");
	return watch(interval, count);
}
