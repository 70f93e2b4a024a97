/* The kernel's floor: lines between two processes over two FIFOs, with blocking calls or with poll.
 *
 *     fifo blocking|poll FOLDER CPU      (CPU -1: anywhere)
 *
 * The FIFOs `there` and `back` lie in FOLDER. Each line on stdin is a task, KIND CONTENT_BYTES LINE_BYTES
 * MESSAGES, and is answered with one line of nanoseconds: see tests/bench/rivals/__init__.py.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { READ_BYTES = 65536 }; /* a pipe's capacity; the same for everyone here */

struct task {
    char kind[32];
    size_t content, line, count;
};

static int polls, out_fd, in_fd;
static char *sent, *got;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static long long now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* As an endpoint waits: for data, and for the end of whoever reads what we write. */
static void wait_for(short in, short out) {
    struct pollfd fds[2] = {{in_fd, in, 0}, {out_fd, out, 0}};
    if (poll(fds, 2, -1) < 0) die("poll");
    if (fds[1].revents & POLLERR) exit(0);
}

static void send_all(const char *data, size_t size) {
    while (size > 0) {
        ssize_t n = write(out_fd, data, size);
        if (n < 0 && errno == EAGAIN) {
            wait_for(0, POLLOUT);
            continue;
        }
        if (n < 0) die("write");
        data += n;
        size -= n;
    }
}

/* One read of what is there, up to `most` bytes. */
static size_t receive(char *data, size_t most) {
    for (;;) {
        if (polls) wait_for(POLLIN, 0);
        ssize_t n = read(in_fd, data, most < READ_BYTES ? most : READ_BYTES);
        if (n > 0) return n;
        if (n == 0) exit(0);
        if (errno != EAGAIN) die("read");
    }
}

static void receive_all(char *data, size_t size) {
    for (size_t have = 0; have < size;) have += receive(data + have, size - have);
}

/* Take so many bytes and forget them. */
static void receive_away(size_t size) {
    for (size_t have = 0; have < size;) have += receive(got, READ_BYTES);
}

/* In packet mode each read gives what one write wrote: see O_DIRECT in pipe(2). */
static void set_packets(int is_on) {
    int flags = fcntl(out_fd, F_GETFL);
    if (fcntl(out_fd, F_SETFL, is_on ? flags | O_DIRECT : flags & ~O_DIRECT) < 0) die("fcntl");
}

static void ask(const struct task *t) {
    long long began = now_ns();
    memset(sent, 'x', t->line);
    sent[t->line - 1] = '\n';
    if (strcmp(t->kind, "round_trip") == 0) {
        for (size_t i = 0; i < t->count; i++) {
            memcpy(sent, &i, sizeof i);
            began = now_ns();
            send_all(sent, t->line);
            receive_all(got, t->line);
            printf("%lld ", now_ns() - began);
            if (memcmp(sent, got, t->line) != 0) die("another line came back");
        }
    } else {
        set_packets(strcmp(t->kind, "one_way_single") == 0);
        began = now_ns();
        for (size_t i = 0; i < t->count; i++) send_all(sent, t->line);
        receive_all(got, t->line);
        printf("%lld", now_ns() - began);
        set_packets(0);
    }
    printf("\n");
    fflush(stdout);
}

static void answer(const struct task *t) {
    if (strcmp(t->kind, "round_trip") == 0) {
        for (size_t i = 0; i < t->count; i++) {
            receive_all(got, t->line);
            send_all(got, t->line);
        }
    } else {
        receive_away(t->count * t->line);
        send_all(sent, t->line);
    }
}

static void make_room(size_t line) {
    size_t room = line > READ_BYTES ? line : READ_BYTES;
    if (!(sent = realloc(sent, room)) || !(got = realloc(got, room))) die("memory");
}

int main(int argc, char **argv) {
    int tasks[2], flags;
    struct task t;
    cpu_set_t cpus;
    if (argc != 4 || chdir(argv[2]) < 0) die("usage: fifo blocking|poll FOLDER CPU");
    CPU_ZERO(&cpus);
    if (atoi(argv[3]) >= 0) CPU_SET(atoi(argv[3]), &cpus);
    if (CPU_COUNT(&cpus) && sched_setaffinity(0, sizeof cpus, &cpus) < 0) die("sched_setaffinity");
    polls = strcmp(argv[1], "poll") == 0;
    if (pipe(tasks) < 0) die("pipe");
    pid_t pid = fork();
    if (pid < 0) die("fork");
    if (pid > 0) {
        close(tasks[0]);
        if ((out_fd = open("there", O_WRONLY)) < 0 || (in_fd = open("back", O_RDONLY)) < 0) die("open");
    } else {
        close(tasks[1]);
        if ((in_fd = open("there", O_RDONLY)) < 0 || (out_fd = open("back", O_WRONLY)) < 0) die("open");
    }
    flags = polls ? O_NONBLOCK : 0;
    if (fcntl(in_fd, F_SETFL, flags) < 0 || fcntl(out_fd, F_SETFL, flags) < 0) die("fcntl");
    if (pid == 0) {
        while (read(tasks[0], &t, sizeof t) == sizeof t) {
            make_room(t.line);
            answer(&t);
        }
        return 0;
    }
    printf("ready\n");
    fflush(stdout);
    while (scanf("%31s %zu %zu %zu", t.kind, &t.content, &t.line, &t.count) == 4) {
        make_room(t.line);
        if (write(tasks[1], &t, sizeof t) != sizeof t) die("write");
        ask(&t);
    }
    return 0;
}
