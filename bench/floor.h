/*
 * floor.h: what the files of the floor share.
 */
#ifndef BENCH_FLOOR_H
#define BENCH_FLOOR_H

/* A descriptor of the netns of the calling thread. */
int open_home(void);

/* Nobody may be left of a benchmark that was killed. */
void end_with_parent(void);

/* ztunnel's end of ZDS with the agent on a socket, whose path is the argument. Returns at the end
 * of the connection. */
void *serve_zds(void *path);

#endif
