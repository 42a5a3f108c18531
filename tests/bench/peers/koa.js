"use strict";
// Two layers, as prefork's: one that hands on, one that answers.
const Koa = require("koa");

const app = new Koa();
app.use(async (ctx, next) => {
  await next();
});
app.use(async (ctx) => {
  ctx.body = "Hello, world!\n";
});
app.listen(Number(process.argv[2]), "127.0.0.1", 2048);
