// SPDX-License-Identifier: GPL-2.0
/*
 * run: a policy is in charge as long as this process wants it.
 *
 * The link is pinned as with load, so that status, set, and swap work as ever;
 * who swaps the policy changes what this process stands for.  When it is killed
 * the policy stays, and the next run takes over without a gap.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "ksmx.h"

enum {
	WATCH_SIGNAL,
	WATCH_STATE,
	WATCH_LINK,
	NR_WATCHES
};

static int report_end(const char *policy, const char *cause,
		      const char *record)
{
	bool ejected = !strcmp(cause, "ejected");
	char dump[DUMP_LEN] = "";

	/* What it had to say itself is there when it has been unloaded. */
	if (ejected)
		sysfs_read("exit_dump", dump, sizeof(dump));
	if (options.json) {
		cJSON *object = cJSON_CreateObject();

		cJSON_AddStringToObject(object, "policy", policy);
		cJSON_AddStringToObject(object, "end", cause);
		cJSON_AddStringToObject(object, "exit", record);
		cJSON_AddStringToObject(object, "dump", dump);
		print_json(object);
	} else if (ejected) {
		fail(KSMX_EJECTED, "%s was ejected: %s", policy, record);
		if (*dump)
			fprintf(stderr, "dump: %s\n", dump);
	} else {
		printf("%s: %s\n", policy, cause);
	}
	return ejected ? KSMX_EJECTED : KSMX_OK;
}

/* Reading it arms the next notification, so this comes before each poll. */
static void read_state(int fd, char *state, size_t size)
{
	ssize_t n = pread(fd, state, size - 1, 0);

	state[n > 0 ? n : 0] = '\0';
	state[strcspn(state, "\n")] = '\0';
}

/* The record of who was not ejected, but unloaded, or replaced after that. */
static bool is_goodbye(const char *record)
{
	return !*record || !strncmp(record, "unreg:", 6) ||
	       !strncmp(record, "update:", 7);
}

/* Waits until the policy ends or somebody wants it to. */
static int watch(int link, struct pollfd fds[NR_WATCHES])
{
	char policy[64] = "", now[64], state[32], record[RECORD_LEN] = "";
	int ret;

	for (;;) {
		read_state(fds[WATCH_STATE].fd, state, sizeof(state));
		if (!strcmp(state, "ejected") || !link_map_id(link))
			break;
		/* Who has just been ejected may have no name any more. */
		if (sysfs_read("policy", now, sizeof(now)) && *now)
			strcpy(policy, now);
		sd_notifyf(0, "READY=1\nSTATUS=%s is %s", policy, state);
		if (poll(fds, NR_WATCHES, -1) < 0 && errno != EINTR)
			return fail(KSMX_FAILED, "poll: %s", strerror(errno));
		if (fds[WATCH_SIGNAL].revents) {
			sd_notify(0, "STOPPING=1");
			ret = end_charge(link);
			return ret ?: report_end(policy, "unloaded", "");
		}
	}

	/*
	 * The link may have ended since, by an ejection.  When the next policy
	 * is loaded, only the record tells of that, and it only to root.
	 */
	if (strcmp(state, "ejected"))
		read_state(fds[WATCH_STATE].fd, state, sizeof(state));
	sysfs_read("exit", record, sizeof(record));
	if (strcmp(state, "ejected") && is_goodbye(record))
		return report_end(policy, "unloaded by somebody else", record);
	if (!*record)
		strcpy(record, "only root may read why");
	/* The policy may have written more than one line, this takes one. */
	sd_notifyf(0, "STATUS=ejected: %.*s", (int)strcspn(record, "\n"),
		   record);
	end_charge(link);
	return report_end(policy, "ejected", record);
}

int cmd_run(int argc, char **argv)
{
	struct pollfd fds[NR_WATCHES] = {
		[WATCH_SIGNAL] = { .events = POLLIN },
		[WATCH_STATE] = { .events = POLLPRI },
		/* Only POLLHUP, which need not be asked for. */
		[WATCH_LINK] = { .events = 0 },
	};
	sigset_t signals;
	int link, ret;

	/* From here on a signal waits until there is something to unload. */
	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	fds[WATCH_SIGNAL].fd = signalfd(-1, &signals, SFD_CLOEXEC);

	ret = check_support();
	if (ret)
		return ret;
	fds[WATCH_STATE].fd = open(SYSFS "/state", O_RDONLY | O_CLOEXEC);
	if (fds[WATCH_SIGNAL].fd < 0 || fds[WATCH_STATE].fd < 0)
		return fail(KSMX_FAILED, "cannot watch " SYSFS "/state: %s",
			    strerror(errno));

	link = put_in_charge(argv[0]);
	if (link < 0)
		return -link;
	fflush(stdout);
	fds[WATCH_LINK].fd = link;
	return watch(link, fds);
}
